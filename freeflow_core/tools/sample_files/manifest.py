"""What the samples of a folder are: the settings that decide them, and what of them is finished."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from freeflow_core import __version__
from freeflow_core.config.load import differences
from freeflow_core.errors import ConfigError, FreeflowError
from freeflow_core.files import write_text
from freeflow_core.tools.sample_files.blocks import Blocks, Parts
from freeflow_core.tools.sample_files.formats import SampleFormat

MANIFEST_FILE = "samples.json"


@dataclass(frozen=True)
class Manifest:
    """``settings`` decide the samples; ``block_size`` is how they are cut.

    ``evaluations`` and ``seconds_per_image`` are known once the samples are ``complete``.
    """

    settings: Mapping[str, Any]
    block_size: int
    complete: bool = False
    evaluations: float | None = None
    seconds_per_image: float | None = None

    def write(self, folder: Path) -> None:
        """Write ``samples.json``. Raises ``OSError`` when the disk is full."""
        write_text(folder / MANIFEST_FILE, json.dumps({**asdict(self), "freeflow_version": __version__}, indent=1))


def read_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest, or None. Raises ``ConfigError`` when the file is something else."""
    path = folder / MANIFEST_FILE
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text("utf-8"))
        stored.pop("freeflow_version")
        return Manifest(**stored)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{path} was not written by `freeflow sample` ({error!r}), so these samples cannot be continued. "
            "Choose another --output."
        ) from error


def open_folder(
    path: Path, num: int, sample_format: SampleFormat, parts: Parts, fresh: Manifest
) -> tuple[Manifest, set[int]]:
    """The manifest to go on with, and the blocks of the samples 0 ... ``num`` - 1 that are finished.

    Nothing that is finished is ever overwritten, and nothing is written into a new folder.

    Raises:
        ConfigError: the folder holds samples of other settings, or of nobody knows what.
        FreeflowError: the folder cannot be read.
    """
    if path.exists() and not path.is_dir():
        raise ConfigError(f"The output {path} is a file; expected a folder to create. Choose another --output.")
    try:
        found, finished, missing = read_manifest(path), parts.finished(), sample_format.missing(path, num)
        if found is not None and (finished or found.complete):
            if changed := differences(found.settings, fresh.settings):
                raise ConfigError(
                    f"{path} holds samples of another command, as its {MANIFEST_FILE} says. What differs: "
                    f"{'; '.join(changed)}. Give that command again to go on with it, or choose another --output."
                )
            return _go_on(path, Blocks(num, found.block_size), sample_format, parts, found, finished, missing)
        if finished or len(missing) < len(sample_format.file_names(num)):
            raise ConfigError(
                f"{path} already holds samples, and no {MANIFEST_FILE} that says how they were drawn. Nothing is "
                "overwritten: choose another --output."
            )
        parts.clear()
        return fresh, set()
    except OSError as error:
        raise FreeflowError(f"The output folder {path} cannot be used: {error}.") from error


def _go_on(
    path: Path,
    blocks: Blocks,
    sample_format: SampleFormat,
    parts: Parts,
    manifest: Manifest,
    finished: set[int],
    missing: set[str],
) -> tuple[Manifest, set[int]]:
    if manifest.complete and not missing:
        parts.remove()  # a process that was killed at the very end may have left them
        return manifest, set(range(len(blocks)))
    parts.clear()
    for left in path.glob(".*.partial"):
        left.unlink(missing_ok=True)
    if manifest.complete:  # somebody deleted files since
        manifest = replace(manifest, complete=False)
        manifest.write(path)
    if not sample_format.keeps_samples:
        names = sample_format.file_names(blocks.num)
        for block in list(finished):
            if not missing.isdisjoint(names[i] for i in blocks.indices(block)):
                parts.drop(block)
                finished.remove(block)
    return manifest, finished
