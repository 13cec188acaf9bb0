"""States that ``freeflow encode`` made beforehand, so that training needs neither the codec nor the images."""

import json
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.network_file import load_tensors
from freeflow_core.types import Batch, Condition
from freeflow_data.config import LatentsConfig, OnError
from freeflow_data.images import IndexedSource, Problems, Rows

MANIFEST = "manifest.json"
_LABELS = "labels"


@final
class LatentsSource(IndexedSource):
    """Float32 states of a folder written by ``freeflow encode``, with their labels.

    Where the codec has a posterior, image number i of the run is mean + std * noise, the noise a function of the seed
    and i alone; so is the choice between an image and its mirrored copy.
    """

    def __init__(self, config: LatentsConfig) -> None:
        """Raises ``ConfigError`` for a folder that is missing, incomplete or damaged, or has no mirrored copies."""
        self._folder = LatentsFolder(config.path.expanduser(), config.on_error)
        super().__init__(len(self._folder), config.seed)
        manifest = self._folder.manifest
        if config.flip and not manifest.job.flip:
            raise ConfigError(
                f"source.flip is set, but the latents in {config.path} have no mirrored copies. Encode them again into "
                "another folder with `freeflow encode --flip`, or leave source.flip out."
            )
        self._sample = config.sample and manifest.std
        self._flip = manifest.job.flip if config.flip is None else config.flip
        self.encoded_by = str(manifest.job.codec["name"])
        self.num_classes = manifest.num_classes
        if len(manifest.state_shape) == 3:
            channels, height, width = manifest.state_shape
            self.image_shape = (channels, height, width)

    def read(self, rows: Rows, numbers: Rows) -> Batch:
        draws = PhiloxDraws(self._seed, torch.from_numpy(numbers))
        x = self._states("mean", rows, draws)
        if self._sample:
            x = x + self._states("std", rows, draws) * draws.noise("latents/posterior", tuple(x.shape[1:]))
        return Batch(x, self._folder.condition(rows))

    def held_out(self) -> tuple[Tensor, Condition] | None:
        """None: there are no images here. Name a source of images as ``reference``."""
        return None

    def _states(self, name: str, rows: Rows, draws: PhiloxDraws) -> Tensor:
        states = self._folder.take(name, rows)
        if self._flip:
            mirrored = draws.uniform("latents/flip") < 0.5
            states[mirrored] = self._folder.take(f"{name}.flipped", rows[mirrored.numpy()])
        return states.float()


@final
class LatentsFolder:
    """States by row number. The shards are mapped and not loaded; any number of threads may read.

    Raises:
        ConfigError: no such folder, not complete, or with shards that are missing or damaged and not to be skipped.
    """

    def __init__(self, path: Path, on_error: OnError) -> None:
        self.manifest = read_manifest(path)
        problems = Problems(f"The latents in {path}", "shards")
        self._shards: list[dict[str, Tensor]] = []
        damaged: list[str] = []
        for name, rows in self.manifest.shards.items():
            try:
                tensors, _ = load_tensors(path / name)
                if {len(tensor) for tensor in tensors.values()} != {rows} or "mean" not in tensors:
                    raise CheckpointError(f"it does not hold {rows} rows")
                self._shards.append(tensors)
            except CheckpointError as error:
                damaged.append(f"{name}: {error}")
        problems.add("missing or damaged", damaged)
        problems.settle(on_error, len(self.manifest.shards), "Run the same `freeflow encode` again: it fills the gaps.")
        self._ends = torch.tensor([len(shard["mean"]) for shard in self._shards]).cumsum(0)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def take(self, name: str, rows: Rows) -> Tensor:
        """Rows (N, ...) of the tensors ``name`` (``mean``, ``std``, ``mean.flipped``, ...), as stored."""
        index = torch.from_numpy(rows)
        shard_of = torch.searchsorted(self._ends, index, right=True)
        example = self._shards[0][name]
        result = torch.empty((len(index), *example.shape[1:]), dtype=example.dtype)
        for number in np.unique(shard_of.numpy()).tolist():
            here = (shard_of == number).nonzero().flatten()
            shard = self._shards[number][name]
            result[here] = shard[index[here] - (self._ends[number] - len(shard))]
        return result

    def condition(self, rows: Rows) -> Condition:
        names = [name for name in self._shards[0] if name.split(".")[0] == _LABELS]
        if names == [_LABELS]:
            return self.take(_LABELS, rows)
        return {name.removeprefix(f"{_LABELS}."): self.take(name, rows) for name in names} or None


class Job(BaseModel):
    """What was encoded."""

    codec: dict[str, Any]
    flip: bool


class Manifest(BaseModel):
    """What a complete folder holds: ``shards`` says how many rows each file has."""

    format: Literal["freeflow-latents"]
    version: Literal[1]
    job: Job
    state_shape: tuple[int, ...]
    num_classes: int | None
    std: bool
    shards: dict[str, int] = Field(min_length=1)


def read_manifest(path: Path) -> Manifest:
    """The manifest of a complete folder. Raises ``ConfigError``."""
    file = path / MANIFEST
    if not file.is_file():
        raise ConfigError(
            f"There are no latents in {path} (no {MANIFEST}). Make them: `freeflow encode --source NAME --codec NAME "
            f"--output {path}`."
        )
    try:
        values = json.loads(file.read_text("utf-8"))
        if isinstance(values, dict) and values.get("complete") is False:
            raise ConfigError(
                f"The latents in {path} are not complete: encoding was stopped. Run the same `freeflow encode` again; "
                "it goes on where it stopped."
            )
        return Manifest.model_validate(values)
    except ValidationError as error:
        reason = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    except (OSError, ValueError) as error:
        reason = str(error)
    raise ConfigError(f"{file} cannot be used: {reason}. Expected what `freeflow encode` writes.")
