"""Takes all runs of a comparison, one after another; what was finished before is not repeated."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import torch
from filelock import FileLock, Timeout

from freeflow_core.config.compare import CompareConfig, objective_config
from freeflow_core.engine.build import Builder
from freeflow_core.engine.process import choose_device
from freeflow_core.engine.run import Run
from freeflow_core.engine.run_folder import DEFAULT_PARENT
from freeflow_core.errors import ConfigError, FreeflowError, Interrupted
from freeflow_core.evaluation.scores import DATA, TEACHER_1, SharedRows
from freeflow_core.evaluation.scoring import Scoring
from freeflow_core.plugin import Manager, Registry
from freeflow_core.tools.compare.cost import fix_lengths, free_memory, with_length
from freeflow_core.tools.compare.failures import describe, disk_is_full, full_disk_reported
from freeflow_core.tools.compare.files import write_files
from freeflow_core.tools.compare.manifest import FINISHED, Manifest
from freeflow_core.tools.compare.plan import PlannedRun, Planner, Variant, planned_runs
from freeflow_core.tools.compare.plot import plot
from freeflow_core.tools.compare.table import Table, make_table
from freeflow_core.tools.compare.tracking import ParentRun

_log = logging.getLogger("freeflow")
_LOCK = ".lock"


@dataclass(frozen=True)
class CompareResult:
    """What a comparison left behind.

    Args:
        status: ``finished``, ``failed`` (some runs did), or ``planned`` (a dry run).
        files: what was written, by name.
        failed: error texts by the runs' names.
        teacher_lines: title, score and fidelity of the teacher's own rows.
    """

    folder: Path
    status: str
    table: Table
    teacher_lines: list[tuple[str, str, str]] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)


@final
class Comparison:
    """Plans and measures, then trains and scores. Use once.

    Args:
        output: the comparison's folder; None for ``runs/compare-<name>``.

    Raises:
        ConfigError: parts that do not fit each other, or several processes.
    """

    def __init__(self, config: CompareConfig, manager: Manager, output: Path | None) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError(
                "A comparison takes its runs one after another in a single process. Start it without torchrun or "
                "accelerate launch; single runs of it can be resumed with them."
            )
        self._config = config
        self._manager = manager
        self._registry = Registry(manager)
        self.folder = output or DEFAULT_PARENT / f"compare-{config.name}"
        self._variants = self._planned()
        self._runs = planned_runs(self._variants, config.comparison.seeds, self.folder)
        self._shared: dict[str, SharedRows] = {}

    def plan(self) -> CompareResult:
        """Measure what each objective costs; write and train nothing. Raises ``ConfigError``."""
        return CompareResult(self.folder, "planned", self._table(self._open()))

    def execute(self) -> CompareResult:
        """Take every run that is not finished; a failing one is recorded, and the others go on.

        Raises:
            ConfigError: another comparison in the folder, or parts that do not fit each other.
            Interrupted: Ctrl-C or SIGTERM; the same command goes on.
            FreeflowError: a full disk, or another process at work in the folder; what was finished stays.
        """
        with self._locked(), full_disk_reported(self.folder):
            manifest = self._open()
            manifest.write(self._runs)
            return self._execute(manifest)

    def _planned(self) -> tuple[Variant, ...]:
        config = self._config
        first = objective_config(self._registry, config, config.comparison.objectives[0], config.values[0])
        variants = Planner(config, Builder(self._registry, choose_device(first.runtime), seed=0)).variants()
        free_memory()
        return variants

    def _open(self) -> Manifest:
        """The manifest, with every variant's length: kept there, for a second start must train the same runs."""
        manifest = Manifest.open(self.folder, self._config, self._variants)
        fix_lengths(manifest.records, self._variants, self._config.comparison.budget, self._registry)
        return manifest

    def _execute(self, manifest: Manifest) -> CompareResult:
        parent = ParentRun(
            self._config,
            self._runs,
            self._manager,
            Builder(self._registry, torch.device("cpu"), seed=0),
            key=manifest.key,
            folder=self.folder,
            resumed=manifest.resumed,
        )
        status = "failed"
        table: Table | None = None
        files: dict[str, Path] = {}
        try:
            parent.started()
            for number, run in enumerate(self._runs, 1):
                if self._take(run, manifest, parent, f"Run {number} of {len(self._runs)}"):
                    manifest.write(self._runs)
                    files = write_files(self._table(manifest), self._runs, manifest)
            table = self._table(manifest)
            files = write_files(table, self._runs, manifest, plot(table, self.folder))
            status = "failed" if table.errors else "finished"
            return CompareResult(self.folder, status, table, table.teacher_lines, files, table.errors)
        except (KeyboardInterrupt, Interrupted) as error:
            status = "interrupted"
            finished = sum(found.status == FINISHED for found in manifest.outcomes(self._runs).values())
            raise Interrupted(
                f"The comparison was stopped; {finished} of {len(self._runs)} runs are finished in {self.folder}. The "
                "same command goes on where it stopped."
            ) from error
        finally:
            parent.finished(status, table, files.values())

    def _take(self, run: PlannedRun, manifest: Manifest, parent: ParentRun, place: str) -> bool:
        """Train and score one run, or record why not; False for one that was finished before."""
        if manifest.outcomes([run])[run.name].status == FINISHED:
            _log.info("%s: %s is finished.", place, run.name)
            return False
        _log.info("%s: %s", place, run.name)
        manifest.errors.pop(run.name, None)
        record = manifest.records[run.variant.name]
        try:
            if record.images is None:
                raise FreeflowError(record.error or "Its cost could not be measured.")
            _clear_leftovers(run.folder)
            Run(
                run.config(with_length(run.variant.config, record.images)),
                "distill",
                self._manager,
                output=run.folder,
                resume=(run.folder / "config.yaml").is_file(),
                membership=parent.membership(run),
                scorer=functools.partial(Scoring, shared=self._shared_rows(run.variant, manifest)),
            ).execute()
        except Interrupted:
            raise
        except Exception as error:
            if disk_is_full(error):
                raise
            manifest.errors[run.name] = describe(error)
            _log.warning("The run %s failed: %s The comparison goes on.", run.name, manifest.errors[run.name])
        free_memory()
        return True

    def _shared_rows(self, variant: Variant, manifest: Manifest) -> SharedRows:
        """What all runs scored alike have in common; a finished run, perhaps of an earlier start, has the rows already.

        The teacher's samples themselves are nowhere on disk and are drawn again by the first run of a start.
        """
        key = variant.evaluation_key
        if key not in self._shared:
            alike = manifest.outcomes([run for run in self._runs if run.variant.evaluation_key == key]).values()
            scores = next((found.scores for found in alike if found.status == FINISHED), {})
            self._shared[key] = SharedRows(rows={row: scores[row] for row in (TEACHER_1, DATA) if row in scores})
        return self._shared[key]

    def _table(self, manifest: Manifest) -> Table:
        return make_table(manifest, self._runs, self._config.comparison.score)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Two processes in one folder would train the same runs. A folder in which nothing was written is removed."""
        with full_disk_reported(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise FreeflowError(
                f"Another process is at work on the comparison in {self.folder}. Wait for it, or choose another "
                "--output."
            ) from error
        try:
            yield
        finally:
            lock.release()
            if [path.name for path in self.folder.iterdir()] == [_LOCK]:
                (self.folder / _LOCK).unlink()
                self.folder.rmdir()


@contextlib.contextmanager
def each_message_once() -> Iterator[None]:
    """Many runs build the same parts: information repeated word for word is dropped; warnings pass."""
    seen: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        repeated = text in seen and record.levelno <= logging.INFO
        seen.add(text)
        return not repeated

    _log.addFilter(is_new)
    try:
        yield
    finally:
        _log.removeFilter(is_new)


def _clear_leftovers(folder: Path) -> None:
    """A process that was killed while it began the run left at most a file that is not whole."""
    if folder.is_dir() and not (folder / "config.yaml").is_file():
        for path in folder.glob(".*.partial"):
            path.unlink()
