"""Reads what ``freeflow encode`` wrote: a manifest and shards of states."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.network_file import load_tensors
from freeflow_core.types import Condition
from freeflow_data.config import OnError
from freeflow_data.ordering import Rows
from freeflow_data.problems import Problems

MANIFEST = "manifest.json"
FORMAT, VERSION = "freeflow-latents", 1
_LABELS = "labels"


@dataclass(frozen=True)
class Manifest:
    """What the folder holds, in its own words."""

    codec: str
    num_images: int
    state_shape: tuple[int, ...]
    num_classes: int | None
    has_std: bool
    has_flipped: bool
    shards: dict[str, int] = field(repr=False)


@final
class LatentsFolder:
    """States by row number. The shards are mapped and not loaded; any number of threads may read.

    Raises:
        ConfigError: no such folder, not complete, or with shards that are missing or damaged and not to be skipped.
    """

    def __init__(self, path: Path, on_error: OnError) -> None:
        self.path = path
        self.manifest = read_manifest(path)
        problems = Problems(f"The latents in {path}", "shards")
        self._shards: list[dict[str, Tensor]] = []
        for name, rows in self.manifest.shards.items():
            try:
                self._shards.append(self._open(name, rows))
            except CheckpointError as error:
                problems.add("missing or damaged", [f"{name}: {error}"])
        problems.settle(on_error, len(self.manifest.shards), "Run the same `freeflow encode` again: it fills the gaps.")
        lengths = [len(shard["mean"]) for shard in self._shards]
        self._ends = torch.tensor(lengths).cumsum(0)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def take(self, name: str, rows: Rows) -> Tensor:
        """Rows (N, ...) of the tensors ``name`` (``mean``, ``std``, ``mean.flipped``, ...), as stored."""
        index = torch.from_numpy(rows)
        shard_of = torch.searchsorted(self._ends, index, right=True)
        first = torch.cat([torch.zeros(1, dtype=torch.int64), self._ends])
        example = self._shards[0][name]
        result = torch.empty((len(index), *example.shape[1:]), dtype=example.dtype)
        for number in np.unique(shard_of.numpy()).tolist():
            here = (shard_of == number).nonzero().flatten()
            result[here] = self._shards[number][name][index[here] - first[number]]
        return result

    def condition(self, rows: Rows) -> Condition:
        """Labels of the rows, as the source that was encoded gave them."""
        names = [name for name in self._shards[0] if name.split(".")[0] == _LABELS]
        if names == [_LABELS]:
            return self.take(_LABELS, rows)
        return {name.removeprefix(f"{_LABELS}."): self.take(name, rows) for name in names} or None

    def _open(self, name: str, rows: int) -> dict[str, Tensor]:
        tensors, _ = load_tensors(self.path / name)
        if {len(tensor) for tensor in tensors.values()} != {rows} or "mean" not in tensors:
            raise CheckpointError(f"it does not hold {rows} rows")
        return tensors


def read_manifest(path: Path) -> Manifest:
    """The manifest of a complete folder. Raises ``ConfigError``."""
    file = path / MANIFEST
    if not file.is_file():
        raise ConfigError(
            f"There are no latents in {path} (no {MANIFEST}). Make them: freeflow encode --source NAME --codec NAME "
            f"--output {path}"
        )
    try:
        values: Any = json.loads(file.read_text("utf-8"))
        if values["format"] != FORMAT or values["version"] != VERSION:
            raise ValueError(f"it is of format {values['format']!r}, version {values['version']!r}")
        if not values["complete"]:
            raise ConfigError(
                f"The latents in {path} are not complete: encoding was stopped. Run the same `freeflow encode` again; "
                "it goes on where it stopped."
            )
        if not values["shards"]:
            raise ValueError("it names no shards")
        return Manifest(
            codec=values["job"]["codec"]["name"],
            num_images=values["job"]["num_images"],
            state_shape=tuple(values["state_shape"]),
            num_classes=values["num_classes"],
            has_std=values["std"],
            has_flipped=values["job"]["flip"],
            shards=dict(values["shards"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file} cannot be used: {error}. Expected what `freeflow encode` writes ({FORMAT}, version {VERSION})."
        ) from None
