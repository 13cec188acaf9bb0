"""Samples of a folder: what decides them, and drawing them block by block, with other processes or alone.

Those of one launcher meet at the start and stop together. Others, such as the jobs of an array, only share the folder.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median_low
from typing import Any, Self, TypeAlias, TypeVar, final

import numpy as np
import torch
from torch import Tensor

from freeflow_core.config import RuntimeConfig
from freeflow_core.config.load import differences
from freeflow_core.engine.interruption import StopRequest
from freeflow_core.engine.process import choose_device, from_main, launched_processes, start_accelerator
from freeflow_core.errors import ConfigError, FreeflowError, Interrupted
from freeflow_core.evaluation.sampling import Generator, SampleBatch
from freeflow_core.math.random import Lookahead
from freeflow_core.tools.job_folder import JobFolder
from freeflow_core.tools.sample_files.files import Blocks, Part, Parts, SampleFormat, block_size, gather

OnSamples: TypeAlias = Callable[[int, int], None]
"""``on_samples(done, total)`` after each batch of the main process; ``done`` counts those of all processes."""

_POLL_SECONDS = 0.1
_T = TypeVar("_T")


@dataclass(frozen=True)
class Manifest:
    """``samples.json``: ``settings`` decide the samples; ``block_size`` is how they are cut.

    ``evaluations`` and ``seconds_per_image`` are known once the samples are ``complete``.
    """

    settings: Mapping[str, Any]
    block_size: int
    complete: bool = False
    evaluations: float | None = None
    seconds_per_image: float | None = None


@dataclass(frozen=True)
class Team:
    """This process among ``num_processes`` that draw samples together; rank 0 is the main process."""

    device: torch.device
    rank: int = 0
    num_processes: int = 1

    @classmethod
    def join(cls, runtime: RuntimeConfig) -> Self:
        """The processes of torchrun, or this one alone. Raises ``ConfigError`` for a device that is not there."""
        if launched_processes() == 1:
            if runtime.threads is not None:
                torch.set_num_threads(runtime.threads)
            return cls(choose_device(runtime))
        accelerator = start_accelerator(runtime)
        return cls(accelerator.device, accelerator.process_index, accelerator.num_processes)

    @property
    def is_main_process(self) -> bool:
        return self.rank == 0

    def from_main(self, make: Callable[[], _T]) -> _T:
        return from_main(self, make)


@dataclass(frozen=True)
class SampleResult:
    """Samples on disk, and what they cost.

    ``evaluations`` of the network per image, guided ones counted twice. ``seconds_per_image`` on one device, of
    sampling and decoding, without files: the median over batches, the first of which loads and compiles. ``reused``
    samples were there from an earlier start. ``images`` holds a grid's; others are on disk.
    """

    folder: Path
    files: list[Path]
    evaluations: float
    seconds_per_image: float
    reused: int = 0
    images: Tensor | None = field(default=None, repr=False)


class _OtherFailedError(FreeflowError):
    """Another process failed, and has said so itself."""


@final
@dataclass
class SampleWriter:
    """Writes the samples 0 ... num - 1 into a folder.

    Each process draws blocks that are not there yet and that no other has; one of them then makes the final files.
    Nothing is written before the first block is finished, and no block is ever half there. The processes of a launcher
    meet at the start; then they tell each other how they fare through the folder, so none waits for one that failed.

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
        self._ahead = Lookahead(self.batch_size)
        self._drawn: dict[int, Part] = {}  # by this process, without the samples
        self._job = JobFolder(self.folder, "samples.json", Manifest, "samples")

    def write(self, generator: Generator) -> SampleResult:
        """Draw what is missing, and make the final files. All processes return when they are there.

        Raises:
            ConfigError: the folder holds samples of other settings, or files that would be overwritten.
            Interrupted: Ctrl-C or SIGTERM; finished blocks stay.
            FreeflowError: the disk is full, or another process failed; finished blocks stay.
        """
        values, share = math.prod(generator.sample_shape), -(-self.num // self.team.num_processes)
        size = block_size(self.batch_size, generator.num_steps, values, share)
        manifest, finished = self.team.from_main(lambda: self._open(size))
        blocks = Blocks(self.num, manifest.block_size)
        if not manifest.complete:
            try:
                with self._failures_told(blocks), StopRequest() as stop:
                    while not self._is_complete():
                        self._draw(generator, blocks, manifest, stop)
                        if not self._finish(blocks, manifest):
                            self._wait(blocks, stop)
                self._parts.remove()
            finally:
                self._parts.remove_if_empty()
        made = self._job.read()
        assert made is not None
        files = [self.folder / name for name in self.sample_format.file_names(self.num)]
        evaluations, seconds = made.evaluations or 0.0, made.seconds_per_image or 0.0
        return SampleResult(self.folder, files, evaluations, seconds, blocks.count(finished))

    def _open(self, size: int) -> tuple[Manifest, set[int]]:
        """The manifest to go on with, of blocks of ``size`` if none were begun, and the blocks that are finished.

        Nothing that is finished is ever overwritten, and nothing is written into a new folder.
        """
        fresh = Manifest(json.loads(json.dumps(self.describe())), size)
        job, parts, names = self._job, self._parts, self.sample_format.file_names(self.num)
        try:
            manifest, finished = job.read(), parts.finished()
            missing = self.sample_format.missing(self.folder, self.num)
            if manifest is None or not (finished or manifest.complete):
                if finished or len(missing) < len(names):
                    raise ConfigError(
                        f"{self.folder} already holds samples, and no {job.manifest} that says how they were drawn. "
                        "Nothing is overwritten: choose another --output."
                    )
                self._clear()
                return fresh, set()
            job.check_same(differences(manifest.settings, fresh.settings))
            blocks = Blocks(self.num, manifest.block_size)
            if manifest.complete and not missing:
                parts.remove()  # a process that was killed at the very end may have left them
                return manifest, set(range(len(blocks)))
            self._clear()
            if manifest.complete:  # somebody deleted files since
                manifest = replace(manifest, complete=False)
                job.write(asdict(manifest))
            if not self.sample_format.keeps_samples:
                lost = {b for b in finished if not missing.isdisjoint(names[i] for i in blocks.indices(b))}
                parts.drop(lost)
                finished -= lost
            return manifest, finished
        except OSError as error:
            raise FreeflowError(f"The output folder {self.folder} cannot be used: {error}.") from error

    def _clear(self) -> None:
        if not self._parts.is_busy():  # else what looks like leftovers is being written
            self._parts.clear()

    def _is_complete(self) -> bool:
        return (made := self._job.read()) is not None and made.complete

    def _draw(self, generator: Generator, blocks: Blocks, manifest: Manifest, stop: StopRequest) -> None:
        """Draw every block that is missing and that nobody has; processes of a launcher begin at different ones."""
        missing = sorted(set(range(len(blocks))) - self._parts.finished())
        first = len(missing) * self.team.rank // self.team.num_processes
        for block in missing[first:] + missing[:first]:
            with self._parts.claimed(block) as ours:
                if ours and block not in self._parts.finished() and not self._is_complete():
                    self._draw_block(block, generator, blocks, manifest, stop)

    def _draw_block(
        self, block: int, generator: Generator, blocks: Blocks, manifest: Manifest, stop: StopRequest
    ) -> None:
        def drawn() -> Iterator[SampleBatch]:
            done = 0
            for index in blocks.batches(block, self.batch_size):
                self._check(blocks, stop)
                yield generator.batch(index, ahead=self._ahead)
                done += len(index)
                self._tell(blocks, done)

        part = gather(drawn())
        assert part.samples is not None
        with self._writing(blocks):
            if (told := self._job.read()) is None:
                self._job.write(asdict(manifest))
            else:  # perhaps of a job that began at the same time
                theirs, ours = ({**m.settings, "block_size": m.block_size} for m in (told, manifest))
                self._job.check_same(differences(theirs, ours))
            self.sample_format.write_block(self.folder, blocks.indices(block), part.samples)
            self._drawn[block] = replace(part, samples=None)
            self._parts.write(block, part if self.sample_format.keeps_samples else self._drawn[block])

    def _finish(self, blocks: Blocks, manifest: Manifest) -> bool:
        """Make the final files, if all blocks are there and nobody else does; False if there is more to wait for."""
        if len(self._parts.finished()) < len(blocks):
            return False
        with self._parts.claimed(None) as ours:
            if not ours or self._is_complete():
                return ours
            known = self._drawn
            parts = [known.get(block) or self._parts.read(block, samples=False) for block in range(len(blocks))]
            evaluations = sum(part.evaluations for part in parts) / self.num
            seconds = median_low(np.concatenate([part.seconds for part in parts]).tolist())
            with self._writing(blocks):
                self.sample_format.finish(self.folder, self.num, self._parts, parts)
                made = replace(manifest, complete=True, evaluations=evaluations, seconds_per_image=seconds)
                self._job.write(asdict(made))
        return True

    def _wait(self, blocks: Blocks, stop: StopRequest) -> None:
        """For others, which may be killed: then what they had can be claimed."""
        self._check(blocks, stop)
        self._tell(blocks, 0)
        time.sleep(_POLL_SECONDS)

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
