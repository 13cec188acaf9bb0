"""The indices 0 ... num - 1 cut into blocks, each drawn by one process; and the finished ones on disk."""

from __future__ import annotations

import contextlib
import re
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from freeflow_core.errors import CheckpointError
from freeflow_core.files import replacing

PARTS_FOLDER = "parts"
_SMALLEST_BLOCK = 64
_NAME = re.compile(r"block-(\d+)\.npz")


def block_size(batch_size: int) -> int:
    """The smallest multiple of the batch size that makes a file worth writing."""
    return batch_size * -(-_SMALLEST_BLOCK // batch_size)


@final
@dataclass(frozen=True)
class Blocks:
    """Block b holds the indices b size ... (b + 1) size - 1, the last one fewer."""

    num: int
    size: int

    def __len__(self) -> int:
        return -(-self.num // self.size)

    def indices(self, block: int) -> range:
        """The indices of a block."""
        return range(block * self.size, min((block + 1) * self.size, self.num))

    def batches(self, block: int, batch_size: int) -> Iterator[Tensor]:
        """A block's indices in batches. The cuts depend on the block alone, so a resumed run makes the same ones."""
        indices = self.indices(block)
        for first in indices[::batch_size]:
            yield torch.arange(first, min(first + batch_size, indices.stop))

    def count(self, blocks: set[int]) -> int:
        """Samples in these blocks."""
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
        self.folder = folder / PARTS_FOLDER

    def finished(self) -> set[int]:
        """Numbers of the blocks that are there."""
        found = (_NAME.fullmatch(path.name) for path in self.folder.glob("block-*.npz"))
        return {int(match[1]) for match in found if match}

    def write(self, block: int, part: Part) -> None:
        """Raises ``OSError`` when the disk is full."""
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

    def drop(self, blocks: set[int]) -> None:
        """Forget these blocks."""
        for block in blocks:
            self._path(block).unlink(missing_ok=True)

    def report_failure(self, rank: int, reason: str) -> None:
        """Leave a note for the other processes; a disk that takes no note is a failure they meet themselves."""
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / f"failed-{rank}.txt").write_text(reason, "utf-8")

    def failure(self) -> str | None:
        """The note of a process that failed, if there is one."""
        for note in sorted(self.folder.glob("failed-*.txt")):
            return f"process {note.stem.removeprefix('failed-')} failed: {note.read_text('utf-8').strip()}"
        return None

    def clear(self) -> None:
        """Forget the failures of an earlier start, and what a process that was killed left half-written."""
        partial = (folder.glob(".*.partial") for folder in (self.folder, self.folder.parent))
        for left in chain(self.folder.glob("failed-*.txt"), *partial):
            left.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete them all."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, block: int) -> Path:
        return self.folder / f"block-{block:06d}.npz"
