"""Finished blocks on disk, until the last one is there."""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from freeflow_core.errors import CheckpointError
from freeflow_core.evaluation.sampling import SampleBatch
from freeflow_core.files import replacing

PARTS_FOLDER = "parts"
_NAME = re.compile(r"block-(\d+)\.npz")


@dataclass(frozen=True)
class Cost:
    """What samples cost: network evaluations, and seconds of ``timed`` of them; a process's first batch counts apart.

    The first batch loads, downloads and compiles what later ones find ready.
    """

    samples: float = 0.0
    evaluations: float = 0.0
    timed: float = 0.0
    seconds: float = 0.0
    first: float = 0.0
    first_seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(self.numbers(), other.numbers(), strict=True)))

    def numbers(self) -> tuple[float, ...]:
        """In the order of the fields."""
        return self.samples, self.evaluations, self.timed, self.seconds, self.first, self.first_seconds

    @property
    def evaluations_each(self) -> float:
        """Network evaluations per sample."""
        return self.evaluations / max(self.samples, 1)

    @property
    def seconds_each(self) -> float:
        """Seconds per sample on one device; of first batches when there was no other."""
        return self.seconds / self.timed if self.timed else self.first_seconds / max(self.first, 1)


def cost_of(batch: SampleBatch, *, is_first: bool) -> Cost:
    """What one batch cost; ``is_first``: the first one of a process."""
    number, evaluations = len(batch.index), batch.num_evaluations * len(batch.index)
    if is_first:
        return Cost(number, evaluations, first=number, first_seconds=batch.seconds)
    return Cost(number, evaluations, number, batch.seconds)


@dataclass(frozen=True)
class Part:
    """A finished block: ``labels`` (n,) of conditional models, and ``samples`` (n, ...) unless they are files."""

    cost: Cost
    labels: np.ndarray | None
    samples: np.ndarray | None


@final
class Parts:
    """One file a block, each written whole; and the notes of processes that failed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / PARTS_FOLDER

    def finished(self) -> set[int]:
        """Numbers of the blocks that are there."""
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return set()
        return {int(match[1]) for name in names if (match := _NAME.fullmatch(name))}

    def write(self, block: int, part: Part) -> None:
        """Raises ``OSError`` when the disk is full."""
        arrays = {"cost": np.array(part.cost.numbers(), dtype=np.float64)}
        arrays |= {"labels": part.labels} if part.labels is not None else {}
        arrays |= {"samples": part.samples} if part.samples is not None else {}
        with replacing(self._path(block)) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def read(self, block: int, *, samples: bool = True) -> Part:
        """Raises ``CheckpointError`` when the file is damaged."""
        path = self._path(block)
        try:
            with np.load(path, allow_pickle=False) as stored:
                found = {name: stored[name] for name in stored.files if samples or name != "samples"}
            return Part(Cost(*found["cost"].tolist()), found.get("labels"), found.get("samples"))
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise CheckpointError(
                f"{path} is damaged ({error}). Delete it and give the same command again: that block is drawn anew."
            ) from error

    def drop(self, block: int) -> None:
        """Forget a block."""
        self._path(block).unlink(missing_ok=True)

    def report_failure(self, rank: int, reason: str) -> None:
        """Leave a note for the other processes; a disk that takes no note is a failure they meet themselves."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / f"failed-{rank}.txt").write_text(reason, "utf-8")
        except OSError:
            pass

    def failure(self) -> str | None:
        """The note of a process that failed, if there is one."""
        for note in sorted(self.folder.glob("failed-*.txt")):
            rank = note.stem.removeprefix("failed-")
            return f"process {rank} failed: {note.read_text('utf-8').strip()}"
        return None

    def clear(self) -> None:
        """Forget the failures of an earlier start, and what a process that was killed left half-written."""
        for left in (*self.folder.glob("failed-*.txt"), *self.folder.glob(".*.partial")):
            left.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete them all."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, block: int) -> Path:
        return self.folder / f"block-{block:06d}.npz"
