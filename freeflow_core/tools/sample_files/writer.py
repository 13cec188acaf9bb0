"""Draw samples block by block, with other processes or alone, from the start or from where an earlier start ended."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median_low
from typing import Any, Self, TypeAlias, TypeVar, final

import numpy as np
import torch
from torch import Tensor

from freeflow_core.config import RuntimeConfig
from freeflow_core.engine.process import StopRequest, choose_device, from_main, start_accelerator
from freeflow_core.errors import ConfigError, FreeflowError, Interrupted
from freeflow_core.evaluation.sampling import Generator
from freeflow_core.tools.sample_files.blocks import Blocks, Part, Parts, block_size
from freeflow_core.tools.sample_files.formats import SampleFormat, class_labels, file_array, host_samples
from freeflow_core.tools.sample_files.manifest import Manifest, open_folder, read_manifest
from freeflow_core.types import Condition

OnSamples: TypeAlias = Callable[[int, int], None]
"""``on_samples(done, total)`` after each batch of the main process; ``done`` counts those of all processes."""

_POLL_SECONDS = 0.1
_MOST_BYTES_OF_A_GRID = 2**30
_T = TypeVar("_T")


@dataclass(frozen=True)
class Team:
    """This process among ``num_processes`` that draw samples together; rank 0 is the main process."""

    device: torch.device
    rank: int = 0
    num_processes: int = 1

    @classmethod
    def join(cls, runtime: RuntimeConfig) -> Self:
        """The processes of torchrun, or this one alone. Raises ``ConfigError`` for a device that is not there."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            if runtime.threads is not None:
                torch.set_num_threads(runtime.threads)
            return cls(choose_device(runtime))
        accelerator = start_accelerator(runtime)
        return cls(accelerator.device, accelerator.process_index, accelerator.num_processes)

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that prints and puts the files together."""
        return self.rank == 0

    def from_main(self, make: Callable[[], _T]) -> _T:
        """What ``make`` returns on the main process, on every process; its ``FreeflowError`` likewise."""
        return from_main(self, make)


@dataclass(frozen=True)
class WrittenSamples:
    """The final files, how many samples an earlier start had left, evaluations and (median) seconds per sample."""

    files: list[Path]
    reused: int
    evaluations: float
    seconds_per_image: float


class _OtherFailedError(FreeflowError):
    """Another process failed, and has said so itself."""


@final
@dataclass
class SampleWriter:
    """Writes the samples 0 ... num - 1 into a folder.

    Each process draws every ``num_processes``-th block that is not there yet; the main process then makes the final
    files. Nothing is written before the first block is finished, and no block is ever half there. So a start that
    fails at once leaves nothing, and one that fails later leaves what the same command goes on from. The processes
    meet at the start; from then on they tell each other how they fare through the folder, so none waits for one that
    failed.

    Args:
        describe: everything that decides the samples, as JSON; the next start must bring the same. Called once, on the
            main process.
        batch_size: samples drawn at once; may change from start to start.
    """

    folder: Path
    num: int
    sample_format: SampleFormat
    describe: Callable[[], Mapping[str, Any]]
    batch_size: int
    team: Team
    on_progress: OnSamples | None = None

    def __post_init__(self) -> None:
        self._parts = Parts(self.folder)

    def write(self, generator: Generator) -> WrittenSamples:
        """Draw what is missing, and make the final files. All processes return when they are there.

        Raises:
            ConfigError: the folder holds samples of other settings, or files that would be overwritten.
            Interrupted: Ctrl-C or SIGTERM; finished blocks stay.
            FreeflowError: the disk is full, or another process failed; finished blocks stay.
        """
        manifest, finished = self.team.from_main(self._open)
        blocks = Blocks(self.num, manifest.block_size)
        if not manifest.complete:
            todo = [block for block in range(len(blocks)) if block not in finished]
            with self._failures_told(blocks), StopRequest() as stop:
                self._draw(generator, blocks, todo[self.team.rank :: self.team.num_processes], manifest, stop)
                if self.team.is_main_process:
                    self._wait(lambda: len(self._parts.finished()) == len(blocks), blocks, stop)
                    self._finish(blocks, manifest)
                else:
                    self._wait(self._is_complete, blocks, stop)
        made = read_manifest(self.folder)
        assert made is not None
        files = [self.folder / name for name in self.sample_format.file_names(self.num)]
        return WrittenSamples(files, blocks.count(finished), made.evaluations or 0.0, made.seconds_per_image or 0.0)

    def _open(self) -> tuple[Manifest, set[int]]:
        settings = json.loads(json.dumps(self.describe()))
        fresh = Manifest(settings, block_size(self.batch_size))
        return open_folder(self.folder, self.num, self.sample_format, self._parts, fresh)

    def _draw(
        self, generator: Generator, blocks: Blocks, todo: list[int], manifest: Manifest, stop: StopRequest
    ) -> None:
        for block in todo:
            drawn: list[np.ndarray] = []
            conditions: list[Condition] = []
            seconds: list[float] = []
            evaluations = 0.0
            for index in blocks.batches(block, self.batch_size):
                self._check(blocks, stop)
                batch = generator.batch(index)
                drawn.append(file_array(host_samples(batch)))
                conditions.append(batch.condition)
                seconds.append(batch.seconds / len(index))
                evaluations += batch.num_evaluations * len(index)
                self._tell(blocks, sum(map(len, drawn)))
            with self._writing(blocks):
                if read_manifest(self.folder) != manifest:
                    manifest.write(self.folder)
                samples = np.concatenate(drawn)
                self.sample_format.write_block(self.folder, blocks.indices(block), samples)
                kept = samples if self.sample_format.keeps_samples else None
                self._parts.write(block, Part(evaluations, np.array(seconds), class_labels(conditions), kept))

    def _finish(self, blocks: Blocks, manifest: Manifest) -> None:
        parts = [self._parts.read(block, samples=False) for block in range(len(blocks))]
        evaluations = sum(part.evaluations for part in parts) / self.num
        seconds = median_low(np.concatenate([part.seconds for part in parts]).tolist())
        with self._writing(blocks):
            self.sample_format.finish(self.folder, self._parts, blocks)
            replace(manifest, complete=True, evaluations=evaluations, seconds_per_image=seconds).write(self.folder)
        self._parts.remove()

    def _is_complete(self) -> bool:
        manifest = read_manifest(self.folder)
        return manifest is not None and manifest.complete

    def _wait(self, is_done: Callable[[], bool], blocks: Blocks, stop: StopRequest) -> None:
        while not is_done():
            self._check(blocks, stop)
            self._tell(blocks, 0)
            time.sleep(_POLL_SECONDS)
        if self.team.num_processes > 1:
            self._tell(blocks, 0)

    def _tell(self, blocks: Blocks, drawn: int) -> None:
        if self.on_progress is not None and self.team.is_main_process:
            self.on_progress(min(self.num, blocks.count(self._parts.finished()) + drawn), self.num)

    def _check(self, blocks: Blocks, stop: StopRequest) -> None:
        if stop.requested:
            raise Interrupted
        if self.team.num_processes > 1 and (reason := self._parts.failure()):
            raise _OtherFailedError(f"Sampling stopped because {reason} {self._kept(blocks)}")

    @contextmanager
    def _writing(self, blocks: Blocks) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FreeflowError(
                f"Writing samples to {self.folder} failed: {error}. Free some space. {self._kept(blocks)}"
            ) from error

    @contextmanager
    def _failures_told(self, blocks: Blocks) -> Iterator[None]:
        """What ends the work inside early also ends it in the other processes."""
        try:
            yield
        except _OtherFailedError:
            raise
        except (Interrupted, KeyboardInterrupt) as error:
            self._leave_note("it was interrupted.")
            raise Interrupted(f"Sampling was stopped. {self._kept(blocks)}") from error
        except Exception as error:
            self._leave_note(str(error) if isinstance(error, FreeflowError) else f"{type(error).__name__}: {error}.")
            raise

    def _leave_note(self, reason: str) -> None:
        if self.team.num_processes > 1:
            self._parts.report_failure(self.team.rank, reason)

    def _kept(self, blocks: Blocks) -> str:
        finished = blocks.count(self._parts.finished())
        if not finished:
            return "No samples were finished."
        return (
            f"{finished:,} of {self.num:,} samples are finished and stay in {self.folder}; the same command goes on "
            "from there."
        )


def draw_in_memory(generator: Generator, num: int, batch_size: int) -> tuple[Tensor, float, float]:
    """Images (num, C, H, W) uint8 or states (num, *D) on the host; evaluations and seconds per sample.

    Raises:
        ConfigError: together they are larger than a gigabyte.
    """
    images: list[Tensor] = []
    seconds: list[float] = []
    evaluations = 0.0
    for batch in generator.batches(0, num, batch_size):
        if batch.images[0].nbytes * num > _MOST_BYTES_OF_A_GRID:
            raise ConfigError(
                f"A grid of {num:,} samples of shape {tuple(batch.images.shape[1:])} is too large for one picture. "
                "Ask for fewer, or for --format png, webp or npz, which never hold all of them in memory."
            )
        seconds.append(batch.seconds / len(batch.index))
        evaluations += batch.num_evaluations * len(batch.index)
        images.append(host_samples(batch))
    return torch.cat(images), evaluations / num, median_low(seconds)
