"""``freeflow encode``: states of all images of a source, computed once by a codec and kept in a folder of shards."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

import torch
from torch import Tensor

from freeflow_core.config import ComponentChoice, RuntimeConfig
from freeflow_core.config.load import differences, lay_settings, resolve_choice
from freeflow_core.engine.build import Builder
from freeflow_core.engine.interruption import StopRequest
from freeflow_core.engine.peers import joined
from freeflow_core.engine.process import from_main
from freeflow_core.errors import CheckpointError, ConfigError, FreeflowError, Interrupted
from freeflow_core.interfaces import Codec, Source
from freeflow_core.network_file import load_tensors, save_tensors
from freeflow_core.plugin import Manager, Registry
from freeflow_core.tools.job_folder import JobFolder
from freeflow_core.types import Batch

if TYPE_CHECKING:
    from accelerate import Accelerator

FORMAT, VERSION = "freeflow-latents", 1
StoredType = Literal["float32", "float16"]
EncodeProgress = Callable[[int, int], None]
_DTYPES: dict[StoredType, torch.dtype] = {"float32": torch.float32, "float16": torch.float16}


@final
@dataclass(frozen=True)
class Job:
    """Everything that decides the result: ``source`` and ``codec`` as in a configuration, the rest as for `encode`."""

    source: Mapping[str, Any]
    codec: Mapping[str, Any]
    num_images: int
    shard_size: int
    flip: bool
    dtype: StoredType

    @property
    def num_shards(self) -> int:
        return math.ceil(self.num_images / self.shard_size)

    def rows(self, shard: int) -> int:
        return min(self.shard_size, self.num_images - shard * self.shard_size)


@dataclass(frozen=True)
class Encoded:
    """A complete folder. ``written`` images were encoded now, by this process; the others were there already."""

    folder: Path
    num_images: int
    num_shards: int
    state_shape: tuple[int, ...]
    written: int
    seconds: float


def encode(
    *,
    source: str,
    codec: str = "sd-vae",
    output: Path = Path("latents"),
    settings: Iterable[str] = (),
    num: int | None = None,
    flip: bool = False,
    batch_size: int = 32,
    shard_size: int = 4096,
    dtype: StoredType = "float32",
    device: str = "auto",
    on_progress: EncodeProgress | None = None,
    manager: Manager | None = None,
) -> Encoded:
    """Compute the states of a source's images once, for training with the source ``latents``.

    A folder with a part of the same job is gone on with, and a complete one left as it is. Under a launcher the
    shards are shared out between the processes.

    Args:
        settings: ``source.option=value`` and ``codec.option=value`` strings.
        num: images to encode, from the source's first on; None for all of its training images.
        flip: encode the mirrored images too.
        batch_size: images the codec gets at once.
        shard_size: images in a file.
        dtype: type the states are stored in.
        on_progress: told images done and images to do, of this process.

    Raises:
        ConfigError: parts or numbers that do not fit; a folder that holds another job.
        Interrupted: Ctrl-C or SIGTERM; what is whole stays.
        FreeflowError: states that are not finite, or a full disk.
    """
    if batch_size < 1 or shard_size < 1:
        raise ConfigError(f"The batch and shard sizes must be at least 1, got {batch_size} and {shard_size}.")
    registry = Registry(manager or Manager.load())
    laid = lay_settings({"source": {"name": source}, "codec": {"name": codec}}, settings, closed=True)
    chosen = {
        kind: resolve_choice(registry, kind, ComponentChoice.model_validate(choice), kind)
        for kind, choice in laid.items()
    }
    with joined(RuntimeConfig.model_validate({"device": device})) as accelerator:
        builder = Builder(registry, accelerator.device, seed=0)
        images: Source = builder.build("source", chosen["source"])
        described = {kind: choice.model_dump(mode="json") for kind, choice in chosen.items()}
        job = Job(described["source"], described["codec"], _num_images(source, images, num), shard_size, flip, dtype)
        folder = LatentsFolder(output, job)
        from_main(accelerator, folder.open)
        network = builder.build("codec", chosen["codec"], source=images)
        return _encode(folder, accelerator, images, network, batch_size, on_progress or (lambda done, total: None))


def _num_images(name: str, source: Source, num: int | None) -> int:
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


@dataclass(frozen=True)
class _Manifest:
    """As much of ``manifest.json`` as decides whether a job can go on."""

    job: dict[str, Any]


@final
class LatentsFolder:
    """A manifest that says what is in the folder of one job, and shards, each whole or absent."""

    def __init__(self, path: Path, job: Job) -> None:
        self.path, self.job = path, job
        self._folder = JobFolder(path, "manifest.json", _Manifest, "latents")

    def open(self) -> None:
        """Make the folder, or check that it holds the same job.

        Raises:
            ConfigError: it holds another job (the differences are listed) or other files, or is a file.
            FreeflowError: it cannot be written.
        """
        if (found := self._folder.read()) is not None:
            self._folder.check_same(differences(found.job, asdict(self.job)))
        else:
            self._folder.check_empty()
            self._write_manifest(complete=False)

    def shard(self, number: int) -> Path:
        return self.path / f"shard-{number:06d}.safetensors"

    def complete(self, num_classes: int | None) -> tuple[int, ...]:
        """Look at every shard, sign the folder as complete, and return the shape of its states.

        Raises:
            FreeflowError: a shard is missing, damaged (it is removed then) or unlike the others.
        """
        layouts: set[tuple[tuple[int, ...], bool]] = set()
        rows: dict[str, int] = {}
        for number in range(self.job.num_shards):
            path = self.shard(number)
            rows[path.name] = self.job.rows(number)
            try:
                tensors, _ = load_tensors(path)  # mapped: little is read
                if {len(value) for value in tensors.values()} != {rows[path.name]}:
                    raise CheckpointError(f"{path} does not hold {rows[path.name]} rows.")
            except CheckpointError as error:
                path.unlink(missing_ok=True)
                raise FreeflowError(
                    f"A shard was damaged and is removed now; the same command makes it anew. {error}"
                ) from error
            layouts.add((tuple(tensors["mean"].shape[1:]), "std" in tensors))
        if len(layouts) > 1:
            raise FreeflowError(
                f"The shards in {self.path} hold states of different shapes: {sorted(layouts)}. The images or the "
                "codec changed in between; encode into another folder."
            )
        shape, std = layouts.pop()
        self._write_manifest(complete=True, state_shape=shape, std=std, num_classes=num_classes, shards=rows)
        return shape

    def _write_manifest(self, **values: Any) -> None:
        try:
            self._folder.write({"format": FORMAT, "version": VERSION, **values, "job": asdict(self.job)})
        except OSError as error:
            raise FreeflowError(f"The output folder {self.path} cannot be written: {error}.") from error


def _encode(
    folder: LatentsFolder,
    accelerator: Accelerator,
    source: Source,
    codec: Codec,
    batch_size: int,
    on_progress: EncodeProgress,
) -> Encoded:
    """Encode the shards that are not there yet; process r of n those number r, r + n, ...

    Shard k holds the images number k * shard_size and following of the source, whatever the number of processes and
    the batch size.
    """
    began, job = time.perf_counter(), folder.job
    own = range(accelerator.process_index, job.num_shards, accelerator.num_processes)
    missing = [shard for shard in own if not folder.shard(shard).is_file()]
    total = sum(map(job.rows, own))
    there = done = total - sum(map(job.rows, missing))

    def interrupted(kept: int) -> Interrupted:
        return Interrupted(
            f"Encoding was stopped with {kept:,} of {total:,} images done. They are kept in {folder.path}; the same "
            "command goes on from there."
        )

    on_progress(done, total)
    with StopRequest() as stop:
        for shard in missing:
            parts: dict[str, list[Tensor]] = {}
            before, rows = done, job.rows(shard)
            stream = source.batches(shard * job.shard_size, batch_size, 0, 1)
            for batch in islice(stream, math.ceil(rows / batch_size)):
                count = min(batch_size, before + rows - done)  # the last batch goes on into the next epoch
                for name, value in _stored(batch, count, codec, job, accelerator.device).items():
                    parts.setdefault(name, []).append(value.cpu())
                done += count
                if stop.requested and done - before < rows:
                    raise interrupted(before)
                on_progress(done, total)
            whole = {name: torch.cat(values) for name, values in parts.items()}
            save_tensors(folder.shard(shard), whole, {"first": shard * job.shard_size})
            if stop.requested and shard != missing[-1]:
                raise interrupted(done)
    accelerator.wait_for_everyone()
    shape = from_main(accelerator, lambda: folder.complete(source.num_classes))
    seconds = time.perf_counter() - began
    return Encoded(folder.path, job.num_images, job.num_shards, shape, done - there, seconds)


@torch.no_grad()
def _stored(batch: Batch, count: int, codec: Codec, job: Job, device: torch.device) -> dict[str, Tensor]:
    """Of ``count`` images: ``mean`` and, of a codec that draws, ``std``; the same ``.flipped``; ``labels``."""
    assert batch.x is not None
    images = batch.x[:count].to(device)
    views = {"": images} | ({".flipped": images.flip(-1)} if job.flip else {})
    states: dict[str, Tensor] = {}
    for suffix, shown in views.items():
        mean, std = codec.moments(shown)
        states |= {f"mean{suffix}": mean} | ({} if std is None else {f"std{suffix}": std})
    states = {name: value.to(_DTYPES[job.dtype]) for name, value in states.items()}
    if not all(bool(torch.isfinite(value).all()) for value in states.values()):
        raise FreeflowError(
            f"The codec {job.codec['name']!r} made states that are not finite or do not fit {job.dtype}. Use another "
            "precision of the codec, or --dtype float32."
        )
    labels = batch.condition
    if isinstance(labels, Tensor):
        return states | {"labels": labels[:count]}
    return states | {f"labels.{name}": value[:count] for name, value in (labels or {}).items()}
