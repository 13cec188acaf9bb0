"""Samples on disk: cut into blocks that are finished one by one, and what they make in the end.

Processes that know nothing of each other may work in one folder: each block is claimed by the system's lock on a file.
"""

import contextlib
import logging
import os
import re
import shutil
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, final

import numpy as np
import torch
from PIL import features
from torch import Tensor

from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.evaluation.pictures import save_image
from freeflow_core.evaluation.sampling import SampleBatch
from freeflow_core.files import claimed, replacing, write_text
from freeflow_core.types import Condition

_LEAST_SAMPLES, _LEAST_STEPS, _MOST_VALUES = 64, 32, 2**22
_NAME = re.compile(r"block-(\d+)\.npz")
_CLAIM = ".claim"


def block_size(batch_size: int, num_steps: int, values: int, share: int) -> int:
    """A multiple of the batch size that is worth a file: at least 64 samples.

    Where the sampler takes few steps, a file may take longer than samples: then as many batches as take 32 steps, as
    far as they are not more than one process's ``share`` of the samples, nor of more than 2^22 values of states, of
    ``values`` each: 200 MB of decoded images.
    """
    least, wanted = -(-_LEAST_SAMPLES // batch_size), _LEAST_STEPS // num_steps
    return batch_size * max(least, min(wanted, min(share, _MOST_VALUES // values) // batch_size))


@final
@dataclass(frozen=True)
class Blocks:
    """Block b holds the indices b size ... (b + 1) size - 1, the last one fewer."""

    num: int
    size: int

    def __len__(self) -> int:
        return -(-self.num // self.size)

    def indices(self, block: int) -> range:
        return range(block * self.size, min((block + 1) * self.size, self.num))

    def batches(self, block: int, batch_size: int) -> Sequence[Tensor]:
        """A block's indices in batches. The cuts depend on the block alone, so a resumed run makes the same ones."""
        indices = self.indices(block)
        return torch.split(torch.arange(indices.start, indices.stop), batch_size)

    def count(self, blocks: set[int]) -> int:
        return sum(len(self.indices(block)) for block in blocks)


@dataclass(frozen=True)
class Part:
    """A finished block.

    Args:
        evaluations: network evaluations of all its samples together.
        seconds: (batches,) per sample.
        labels: (n,) of conditional models.
        samples: (n, ...), unless they are files.
    """

    evaluations: float
    seconds: np.ndarray
    labels: np.ndarray | None
    samples: np.ndarray | None


@final
class Parts:
    """One file a block, each written whole; and the notes of processes that failed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "parts"

    def finished(self) -> set[int]:
        found = (_NAME.fullmatch(path.name) for path in self.folder.glob("block-*.npz"))
        return {int(match[1]) for match in found if match}

    def write(self, block: int, part: Part) -> None:
        there = {name: value for name, value in vars(part).items() if value is not None}
        with replacing(self._path(block)) as temporary, temporary.open("wb") as file:
            np.savez(file, **there)

    def read(self, block: int, *, samples: bool = True) -> Part:
        """Raises ``CheckpointError`` when the file is damaged."""
        path = self._path(block)
        try:
            with np.load(path, allow_pickle=False) as stored:
                found = {name: stored[name] for name in stored.files if samples or name != "samples"}
            return Part(float(found["evaluations"]), found["seconds"], found.get("labels"), found.get("samples"))
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise CheckpointError(
                f"{path} is damaged ({error}). Delete it and give the same command again: that block is drawn anew."
            ) from error

    def samples(self, block: int) -> np.ndarray:
        found = self.read(block).samples
        assert found is not None
        return found

    def size(self) -> int:
        return sum(path.stat().st_size for path in self.folder.glob("block-*.npz"))

    def drop(self, blocks: set[int]) -> None:
        for block in blocks:
            self._path(block).unlink(missing_ok=True)

    def report_failure(self, rank: int, reason: str) -> None:
        """Leave a note for the other processes; a disk that takes no note is a failure they meet themselves."""
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / f"failed-{rank}.txt").write_text(reason, "utf-8")

    def failure(self) -> str | None:
        for note in sorted(self.folder.glob("failed-*.txt")):
            return f"process {note.stem.removeprefix('failed-')} failed: {note.read_text('utf-8').strip()}"
        return None

    def claimed(self, work: int | None) -> AbstractContextManager[bool]:
        """Whether a block, or with None the making of the final files, is this process's meanwhile."""
        return claimed(self.folder / f".{'end' if work is None else work}{_CLAIM}")

    def is_busy(self) -> bool:
        """Whether another process is at work here."""
        for claim in self.folder.glob(f".*{_CLAIM}"):
            with claimed(claim) as ours:
                if not ours:
                    return True
        return False

    def clear(self) -> None:
        """Forget the failures of an earlier start, and what a process that was killed left half-written."""
        partial = (folder.glob(".*.partial") for folder in (self.folder, self.folder.parent))
        for left in chain(self.folder.glob("failed-*.txt"), *partial):
            left.unlink(missing_ok=True)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def remove_if_empty(self) -> None:
        """Where no block was finished, and nobody is at work, nothing stays: nor does a folder that holds nothing."""
        if not self.finished() and not self.is_busy() and not any(self.folder.glob("failed-*.txt")):
            self.remove()
            with contextlib.suppress(OSError):
                self.folder.parent.rmdir()

    def _path(self, block: int) -> Path:
        return self.folder / f"block-{block:06d}.npz"


FileFormat = Literal["npz", "png", "webp"]
ARRAY_FILE = "samples.npz"
LABELS_FILE = "labels.csv"
_MOST_THREADS = 8
_TAKES_A_WHILE = 2**30
_log = logging.getLogger("freeflow")


class SampleFormat(ABC):
    """How samples are written. Arrays are (n, H, W, C) uint8, or (n, *D) for states that are not images."""

    keeps_samples: bool
    """Whether finished blocks hold the samples themselves until the end."""

    @abstractmethod
    def file_names(self, num: int) -> list[str]:
        """What the samples 0 ... num - 1 are written to, without what only some models have."""

    @abstractmethod
    def write_block(self, folder: Path, indices: range, samples: np.ndarray) -> None:
        """Write what can be written now. Raises ``OSError`` when the disk is full."""

    @abstractmethod
    def finish(self, folder: Path, num: int, parts: Parts, found: Sequence[Part]) -> None:
        """Make the final files of ``num`` samples from ``parts``, of which ``found`` is all but the samples.

        Raises ``OSError`` when the disk is full.
        """

    def missing(self, folder: Path, num: int) -> set[str]:
        try:
            present = {entry.name for entry in os.scandir(folder) if entry.stat().st_size}
        except FileNotFoundError:
            present = set()
        return set(self.file_names(num)) - present


@final
class ArrayFormat(SampleFormat):
    """``samples.npz``: ``arr_0`` with all samples and, for models with classes, their labels ``arr_1`` (n,) int64.

    The layout of ADM's samples (Dhariwal & Nichol 2021), whose evaluator reads ``arr_0``.
    """

    keeps_samples = True

    def file_names(self, num: int) -> list[str]:
        return [ARRAY_FILE]

    def write_block(self, folder: Path, indices: range, samples: np.ndarray) -> None:
        pass

    def finish(self, folder: Path, num: int, parts: Parts, found: Sequence[Part]) -> None:
        if parts.size() > _TAKES_A_WHILE:
            _log.info("Putting %s samples together in %s.", f"{num:,}", folder / ARRAY_FILE)
        arrays: dict[str, Iterable[np.ndarray]] = {"arr_0": (parts.samples(block) for block in range(len(found)))}
        if labels := [part.labels for part in found if part.labels is not None]:
            arrays["arr_1"] = labels
        write_npz(folder / ARRAY_FILE, num, arrays)


@final
class ImageFormat(SampleFormat):
    """``000000.png`` ... or ``.webp``, both lossless, and for models with classes ``labels.csv``.

    Raises ``ConfigError``: this Pillow was built without WebP.
    """

    keeps_samples = False

    def __init__(self, suffix: Literal["png", "webp"]) -> None:
        if suffix == "webp" and not features.check("webp"):
            raise ConfigError("This Pillow was built without WebP. Use --format png, or install another Pillow.")
        self._suffix = suffix

    def file_names(self, num: int) -> list[str]:
        return [self._name(index) for index in range(num)]

    def write_block(self, folder: Path, indices: range, samples: np.ndarray) -> None:
        def save(index: int, sample: np.ndarray) -> None:
            save_image(torch.from_numpy(sample).permute(2, 0, 1), folder / self._name(index))

        with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:  # compression leaves Python's lock
            list(pool.map(save, indices, samples))

    def finish(self, folder: Path, num: int, parts: Parts, found: Sequence[Part]) -> None:
        if labels := [part.labels for part in found if part.labels is not None]:
            lines = [f"{self._name(i)},{label}\n" for i, label in enumerate(np.concatenate(labels).tolist())]
            write_text(folder / LABELS_FILE, "".join(["file,label\n", *lines]))

    def _name(self, index: int) -> str:
        return f"{index:06d}.{self._suffix}"


def sample_format(name: FileFormat, sample_shape: tuple[int, ...]) -> SampleFormat:
    """The format of this name, for states of shape ``sample_shape``. Raises ``ConfigError`` for pictures of points."""
    if name == "npz":
        return ArrayFormat()
    if len(sample_shape) != 3:
        raise ConfigError(
            f"The samples of this model have the shape {sample_shape}: they are no images, so they cannot be written "
            f"as {name}. Use --format npz."
        )
    return ImageFormat(name)


def gather(batches: Iterable[SampleBatch]) -> Part:
    """Several batches as one part; images become (n, H, W, C) uint8, other states stay as they are.

    Raises ``ConfigError``: the codec left latents that are no images.
    """
    samples: list[np.ndarray] = []
    conditions: list[Condition] = []
    seconds: list[float] = []
    evaluations = 0.0
    for batch in batches:
        images = batch.images
        if images.ndim == 4 and images.shape[1] not in (1, 3):
            raise ConfigError(
                f"The samples have {images.shape[1]} channels: they are latents, and the codec left them as they are. "
                "Name the codec they were made with, e.g. --set codec=sd-vae."
            )
        samples.append((images.permute(0, 2, 3, 1) if images.ndim == 4 else images).cpu().contiguous().numpy())
        conditions.append(batch.condition)
        seconds.append(batch.seconds / len(batch.index))
        evaluations += batch.num_evaluations * len(batch.index)
    return Part(evaluations, np.array(seconds), class_labels(conditions), np.concatenate(samples))


def class_labels(conditions: list[Condition]) -> np.ndarray | None:
    """(n,) int64 of all batches, or None when the conditions are not classes."""
    classes = [c.cpu() for c in conditions if isinstance(c, Tensor) and c.ndim == 1 and not c.is_floating_point()]
    return torch.cat(classes).long().numpy() if len(classes) == len(conditions) else None


def write_npz(path: Path, rows: int, arrays: Mapping[str, Iterable[np.ndarray]]) -> None:
    """Write arrays (``rows``, ...) that come in chunks along their first axis; none is ever whole in memory.

    They are laid out as ``np.savez`` does, uncompressed; equal arrays make equal files.

    Raises ``OSError``: the disk is full. Nothing is left at ``path`` that was not there before.
    """
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, chunks in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            with archive.open(member, "w", force_zip64=True) as stream:
                following = iter(chunks)
                first = next(following)
                description = np.lib.format.dtype_to_descr(first.dtype)
                header = {"descr": description, "fortran_order": False, "shape": (rows, *first.shape[1:])}
                np.lib.format.write_array_header_1_0(stream, header)
                written = 0
                for chunk in chain([first], following):
                    assert (chunk.shape[1:], chunk.dtype) == (first.shape[1:], first.dtype)
                    stream.write(np.ascontiguousarray(chunk).data)
                    written += len(chunk)
                assert written == rows
