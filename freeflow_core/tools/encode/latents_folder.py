"""The folder that ``freeflow encode`` writes: a manifest that says what is in it, and shards, each whole or absent."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

from torch import Tensor

from freeflow_core import __version__
from freeflow_core.config.differences import differences
from freeflow_core.errors import CheckpointError, ConfigError, FreeflowError
from freeflow_core.files import write_text
from freeflow_core.network_file import load_tensors, save_tensors

MANIFEST = "manifest.json"
FORMAT, VERSION = "freeflow-latents", 1
StoredType = Literal["float32", "float16"]


@final
@dataclass(frozen=True)
class Job:
    """What is encoded, and how: everything that decides the result.

    Args:
        source, codec: the components, as in a configuration.
        num_images: images encoded, from the source's first on.
        shard_size: images a file.
        flip: encode the mirrored images too.
        dtype: type that states are stored in.
    """

    source: Mapping[str, Any]
    codec: Mapping[str, Any]
    num_images: int
    shard_size: int
    flip: bool
    dtype: StoredType

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {**vars(self), "source": dict(self.source), "codec": dict(self.codec)}

    @property
    def num_shards(self) -> int:
        """Files, the last of which may be shorter."""
        return math.ceil(self.num_images / self.shard_size)

    def rows(self, shard: int) -> int:
        """Images of one shard."""
        return min(self.shard_size, self.num_images - shard * self.shard_size)


@final
class LatentsFolder:
    """Paths and rules of the folder of one job."""

    def __init__(self, path: Path, job: Job) -> None:
        self.path = path
        self.job = job

    def open(self) -> None:
        """Make the folder, or check that it holds the same job.

        Raises:
            ConfigError: it holds another job (the differences are listed) or other files, or is a file.
            FreeflowError: it cannot be written.
        """
        if self.path.is_file():
            raise ConfigError(f"The output {self.path} is a file; expected a folder. Choose another --output.")
        if (self.path / MANIFEST).is_file():
            self._check_job()
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise ConfigError(f"The output folder {self.path} holds other files. Choose another --output.")
        else:
            self._write_manifest(complete=False)

    def has(self, shard: int) -> bool:
        """Whether a shard is there, and so is whole."""
        return self._shard(shard).is_file()

    def save(self, shard: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a shard, atomically. Raises ``CheckpointError`` when the disk is full."""
        save_tensors(self._shard(shard), tensors, {"first": shard * self.job.shard_size})

    def complete(self, num_classes: int | None) -> tuple[int, ...]:
        """Look at every shard, sign the folder as complete, and return the shape of its states.

        Raises:
            FreeflowError: a shard is missing, damaged (it is removed then) or unlike the others.
        """
        layouts: dict[str, tuple[tuple[int, ...], bool]] = {}
        for shard in range(self.job.num_shards):
            path = self._shard(shard)
            try:
                tensors, _ = load_tensors(path)  # mapped: little is read
                if {len(value) for value in tensors.values()} != {self.job.rows(shard)}:
                    raise CheckpointError(f"{path} does not hold {self.job.rows(shard)} rows.")
            except CheckpointError as error:
                path.unlink(missing_ok=True)
                raise FreeflowError(
                    f"A shard was damaged and is removed now; the same command makes it anew. {error}"
                ) from error
            layouts[path.name] = (tuple(tensors["mean"].shape[1:]), "std" in tensors)
        if len(kinds := set(layouts.values())) > 1:
            raise FreeflowError(
                f"The shards in {self.path} hold states of different shapes: {sorted(kinds)}. The images or the codec "
                "changed in between; encode into another folder."
            )
        shape, std = kinds.pop()
        rows = {name: self.job.rows(shard) for shard, name in enumerate(layouts)}
        self._write_manifest(complete=True, state_shape=shape, std=std, num_classes=num_classes, shards=rows)
        return shape

    def _shard(self, shard: int) -> Path:
        return self.path / f"shard-{shard:06d}.safetensors"

    def _check_job(self) -> None:
        try:
            changed = differences(json.loads((self.path / MANIFEST).read_text("utf-8"))["job"], self.job.as_dict())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{self.path / MANIFEST} cannot be read: {error}. Choose another --output, or remove the folder."
            ) from None
        if changed:
            raise ConfigError(
                f"The folder {self.path} holds latents of another job. Changed: {'; '.join(changed)}. Choose another "
                "--output, or give the same settings to go on with it."
            )

    def _write_manifest(self, **values: Any) -> None:
        content = {
            "format": FORMAT,
            "version": VERSION,
            "freeflow_version": __version__,
            **values,
            "job": self.job.as_dict(),
        }
        path = self.path / MANIFEST
        try:
            write_text(path, json.dumps(content, indent=1))
        except OSError as error:
            raise FreeflowError(f"The output folder {self.path} cannot be written: {error}.") from error
