"""States of all images of a source, computed once by a codec and kept in shards."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import final

import torch
from accelerate import Accelerator
from torch import Tensor

from freeflow_core.config import ComponentChoice
from freeflow_core.config.load import lay_settings, resolve_choice
from freeflow_core.engine.process import StopRequest, from_main
from freeflow_core.errors import ConfigError, FreeflowError, Interrupted
from freeflow_core.interfaces import Codec, Source
from freeflow_core.plugin import Registry
from freeflow_core.tools.encode.latents_folder import LatentsFolder, StoredType
from freeflow_core.types import Condition

EncodeProgress = Callable[[int, int], None]
_DTYPES: dict[StoredType, torch.dtype] = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class Encoded:
    """A complete folder. ``written`` images were encoded now, by this process; the others were there already."""

    folder: Path
    num_images: int
    num_shards: int
    state_shape: tuple[int, ...]
    written: int
    seconds: float


def encode_choices(registry: Registry, source: str, codec: str, settings: Iterable[str]) -> dict[str, ComponentChoice]:
    """Source and codec with validated options. Raises ``ConfigError``, also for a setting of anything else."""
    chosen = lay_settings({"source": {"name": source}, "codec": {"name": codec}}, settings, closed=True)
    return {
        kind: resolve_choice(registry, kind, ComponentChoice.model_validate(choice), kind)
        for kind, choice in chosen.items()
    }


def check_encodable(name: str, source: Source, num: int | None) -> int:
    """How many images of the source ``name`` to encode: ``num``, or all. Raises ``ConfigError``."""
    if not source.has_data or source.encoded_by is not None:
        why = "yields no images" if not source.has_data else f"yields states of the codec {source.encoded_by!r} already"
        raise ConfigError(f"The source {name!r} {why}, so there is nothing to encode. Choose another --source.")
    there = source.num_images
    wanted = there if num is None else num
    if wanted is None:
        raise ConfigError(f"The source {name!r} does not say how many images it has. Say how many to encode: --num N.")
    if wanted < 1 or (there is not None and wanted > there):
        raise ConfigError(f"--num {wanted} images cannot be encoded: the source {name!r} has {there} to train on.")
    return wanted


@final
class LatentsEncoder:
    """Encodes the shards of one job that are not there yet.

    Shard k holds the images number k * shard_size and following of the source, whatever the number of processes and
    the batch size; process r of n encodes the shards k with k % n == r.

    Raises:
        ConfigError, FreeflowError: see :meth:`LatentsFolder.open`.
    """

    def __init__(self, folder: LatentsFolder, accelerator: Accelerator) -> None:
        self.folder = folder
        self.job = folder.job
        self._accelerator = accelerator
        from_main(self._accelerator, folder.open)

    def run(self, source: Source, codec: Codec, batch_size: int, on_progress: EncodeProgress) -> Encoded:
        """Encode what is missing.

        Args:
            source, codec: as the job says.
            batch_size: images the codec gets at once; changes nothing beyond the codec's rounding.
            on_progress: told this process's images done, and how many it has to do in all.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; whole shards stay, the one in hand is dropped.
            FreeflowError: a state that is not finite, or a full disk.
        """
        began = time.perf_counter()
        own = range(self._accelerator.process_index, self.job.num_shards, self._accelerator.num_processes)
        total = sum(map(self.job.rows, own))
        missing = [shard for shard in own if not self.folder.has(shard)]
        there = done = total - sum(map(self.job.rows, missing))
        on_progress(done, total)
        with StopRequest() as stop:
            for shard in missing:
                parts: dict[str, list[Tensor]] = {}
                before = done
                for tensors in self._batches(shard, source, codec, batch_size):
                    for name, value in tensors.items():
                        parts.setdefault(name, []).append(value.cpu())
                    done += len(tensors["mean"])
                    if stop.requested and done - before < self.job.rows(shard):
                        raise self._interrupted(before, total)
                    on_progress(done, total)
                self.folder.save(shard, {name: torch.cat(values) for name, values in parts.items()})
                if stop.requested and shard != missing[-1]:
                    raise self._interrupted(done, total)
        self._accelerator.wait_for_everyone()
        shape = from_main(self._accelerator, lambda: self.folder.complete(source.num_classes))
        seconds = time.perf_counter() - began
        return Encoded(self.folder.path, self.job.num_images, self.job.num_shards, shape, done - there, seconds)

    def _batches(self, shard: int, source: Source, codec: Codec, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """The shard's tensors, batch by batch: ``mean`` and, of a codec that draws, ``std``; mirrored; ``labels``."""
        rows = self.job.rows(shard)
        stream = source.batches(shard * self.job.shard_size, batch_size, 0, 1)
        for number, batch in enumerate(islice(stream, math.ceil(rows / batch_size))):
            assert batch.x is not None
            count = min(batch_size, rows - number * batch_size)  # the last batch goes on into the next epoch
            images = batch.x[:count].to(self._accelerator.device)
            tensors = self._states(codec, images, "")
            if self.job.flip:
                tensors |= self._states(codec, images.flip(-1), ".flipped")
            yield tensors | {name: value[:count] for name, value in _named_labels(batch.condition).items()}

    @torch.no_grad()
    def _states(self, codec: Codec, images: Tensor, suffix: str) -> dict[str, Tensor]:
        mean, std = codec.moments(images)
        states = {f"mean{suffix}": mean} | ({} if std is None else {f"std{suffix}": std})
        stored = {name: value.to(_DTYPES[self.job.dtype]) for name, value in states.items()}
        if not all(bool(torch.isfinite(value).all()) for value in stored.values()):
            raise FreeflowError(
                f"The codec {self.job.codec['name']!r} made states that are not finite or do not fit {self.job.dtype}. "
                "Use another precision of the codec, or --dtype float32."
            )
        return stored

    def _interrupted(self, done: int, total: int) -> Interrupted:
        return Interrupted(
            f"Encoding was stopped with {done:,} of {total:,} images done. They are kept in {self.folder.path}; the "
            "same command goes on from there."
        )


def _named_labels(condition: Condition) -> dict[str, Tensor]:
    if condition is None:
        return {}
    if isinstance(condition, dict):
        return {f"labels.{name}": value for name, value in condition.items()}
    return {"labels": condition}
