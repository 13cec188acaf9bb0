"""Whether a folder may be written, and what is finished in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import final

from freeflow_core.config.differences import differences
from freeflow_core.errors import ConfigError, FreeflowError
from freeflow_core.tools.sample_files.blocks import Blocks
from freeflow_core.tools.sample_files.formats import SampleFormat
from freeflow_core.tools.sample_files.manifest import MANIFEST_FILE, Manifest, read_manifest
from freeflow_core.tools.sample_files.parts import Parts


@final
class SampleFolder:
    """Opens the folder of the samples 0 ... num - 1 on the main process."""

    def __init__(self, path: Path, num: int, sample_format: SampleFormat, parts: Parts) -> None:
        self._path = path
        self._num = num
        self._format = sample_format
        self._parts = parts

    def open(self, fresh: Manifest) -> tuple[Manifest, set[int]]:
        """The manifest to go on with, and the blocks that are finished. Nothing that is finished is ever overwritten.

        Raises:
            ConfigError: the folder holds samples of other settings, or of nobody knows what.
            FreeflowError: the folder cannot be read.
        """
        if self._path.exists() and not self._path.is_dir():
            raise ConfigError(
                f"The output {self._path} is a file; expected a folder to create. Choose another --output."
            )
        try:
            return self._open(fresh)
        except OSError as error:
            raise FreeflowError(f"The output folder {self._path} cannot be used: {error}.") from error

    def _open(self, fresh: Manifest) -> tuple[Manifest, set[int]]:
        found = read_manifest(self._path)
        finished = self._parts.finished()
        if found is not None and (finished or found.complete):
            if changed := differences(found.settings, fresh.settings):
                raise ConfigError(
                    f"{self._path} holds samples of another command, as its {MANIFEST_FILE} says. What differs: "
                    f"{'; '.join(changed)}. Give that command again to go on with it, or choose another --output."
                )
            return self._continue(found, finished)
        if finished or len(self._format.missing(self._path, self._num)) < len(self._format.file_names(self._num)):
            raise ConfigError(
                f"{self._path} already holds samples, and no {MANIFEST_FILE} that says how they were drawn. Nothing "
                "is overwritten: choose another --output."
            )
        self._parts.clear()
        return fresh, set()

    def _continue(self, manifest: Manifest, finished: set[int]) -> tuple[Manifest, set[int]]:
        blocks = Blocks(self._num, manifest.block_size)
        missing = self._format.missing(self._path, self._num)
        if manifest.complete and not missing:
            self._parts.remove()  # a process that was killed at the very end may have left them
            return manifest, set(range(len(blocks)))
        self._parts.clear()
        for left in self._path.glob(".*.partial"):
            left.unlink(missing_ok=True)
        if manifest.complete:  # somebody deleted files since
            manifest = replace(manifest, complete=False)
            manifest.write(self._path)
        if not self._format.keeps_samples and missing:
            names = self._format.file_names(self._num)
            for block in list(finished):
                if not missing.isdisjoint(names[i] for i in blocks.indices(block)):
                    self._parts.drop(block)
                    finished.remove(block)
        return manifest, finished
