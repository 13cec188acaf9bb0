"""Takes all runs of a comparison; what was finished before is not repeated, and several processes share the rest.

The first in a folder leads: it measures, writes ``comparison.json``, and in the end the parent run and the table.
Others that are started with the same command take runs that nobody has. Runs and the lead are claimed by the system's
locks on files, which go with a process however it ends; a lead that is free is taken by whoever comes to its end next.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import torch
import yaml

from freeflow_core.config import RunConfig
from freeflow_core.config.compare import CompareConfig, objective_config
from freeflow_core.engine.build import Builder
from freeflow_core.engine.events import Events
from freeflow_core.engine.process import choose_device, launched_processes
from freeflow_core.engine.run import Run
from freeflow_core.engine.run_folder import DEFAULT_PARENT, Membership
from freeflow_core.errors import ConfigError, FreeflowError, Interrupted
from freeflow_core.evaluation.scores import DATA, FLOOR, TEACHER_1, SharedRows
from freeflow_core.evaluation.scoring import Scoring
from freeflow_core.files import claimed, write_text
from freeflow_core.interfaces.journal import now
from freeflow_core.plugin import Manager, Registry
from freeflow_core.plugin.culprit import described
from freeflow_core.tools.compare.cost import cost_key, free_memory, images_for, measure_cost, with_length
from freeflow_core.tools.compare.manifest import FINISHED, LOCKS, Manifest
from freeflow_core.tools.compare.plan import PlannedRun, Planner, Variant, planned_runs
from freeflow_core.tools.compare.plot import plot
from freeflow_core.tools.compare.table import Table, make_table, write_files
from freeflow_core.tools.cost.shortage import memory_told
from freeflow_core.types import Progress, RunInfo, RunParent

_log = logging.getLogger("freeflow")
_LEAD = "lead"
_POLL_SECONDS = 1.0
SHARED = "shared"


@dataclass(frozen=True)
class CompareResult:
    """What a comparison left behind.

    Args:
        status: ``finished``, ``failed`` (some runs did), ``shared`` (another process is at work on the last runs and
            writes the table), or ``planned`` (a dry run).
        files: what was written, by name.
    """

    folder: Path
    status: str
    table: Table
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def failed(self) -> Mapping[str, str]:
        return self.table.errors


@final
class Comparison:
    """Plans and measures, then trains and scores. Use once.

    Args:
        output: the comparison's folder; None for ``runs/compare-<name>``.

    Raises:
        ConfigError: parts that do not fit each other, or several processes.
    """

    def __init__(self, config: CompareConfig, manager: Manager, output: Path | None) -> None:
        if launched_processes() > 1:
            raise ConfigError(
                "Each process of a comparison takes whole runs, so it is not started by torchrun or accelerate launch. "
                "Give the same command once per device, or as an array of jobs: they share the runs."
            )
        self._config, self._manager, self._registry = config, manager, Registry(manager)
        self.folder = output or DEFAULT_PARENT / f"compare-{config.name}"
        first = objective_config(self._registry, config, config.comparison.objectives[0], config.values[0])
        self._variants = Planner(config, Builder(self._registry, choose_device(first.runtime), seed=0)).variants()
        free_memory()
        self._runs = planned_runs(self._variants, config.comparison.seeds, self.folder)
        self._shared: dict[str, SharedRows] = {}

    def plan(self) -> CompareResult:
        """Measure what each objective costs; write and train nothing. Raises ``ConfigError``."""
        return CompareResult(self.folder, "planned", self._table(self._open()))

    def execute(self) -> CompareResult:
        """Take every run that is not finished and that no other process has; a failing one is recorded.

        Raises:
            ConfigError: another comparison in the folder, or parts that do not fit each other.
            Interrupted: Ctrl-C or SIGTERM; the same command goes on.
            FreeflowError: a full disk; what was finished stays.
        """
        with self._full_disk_reported():
            helped = False
            while True:
                with self._claimed(_LEAD) as leads:
                    if leads:
                        manifest = self._open()
                        manifest.write(self._runs, forget_errors=not helped)
                        return self._lead(manifest)
                if helped:
                    return CompareResult(self.folder, SHARED, self._table(Manifest.open(*self._of_the_manifest)))
                helped = self._help()

    def _open(self) -> Manifest:
        """The manifest, with every variant's length: kept there, for a second start must train the same runs."""
        manifest = Manifest.open(*self._of_the_manifest)
        records, budget = manifest.records, self._config.comparison.budget
        known = {cost_key(v.config): cost for v in self._variants if (cost := records[v.name].cost) is not None}
        for variant in self._variants:
            record, key = records[variant.name], cost_key(variant.config)
            if record.images is not None:
                continue
            try:
                if key not in known:
                    _log.info("Measuring what a step of %s costs.", variant.name)
                    known[key] = measure_cost(variant.config, self._registry)
                record.cost, record.error = known[key], None
                record.images = images_for(budget, variant.config, known[key])
            except ConfigError as error:
                raise ConfigError(f"In the runs of {variant.name}: {error}") from error
            except Exception as error:
                if _disk_is_full(error):
                    raise
                record.error = _described(error)
                _log.warning("The cost of %s cannot be measured: %s", variant.name, record.error)
        return manifest

    def _lead(self, manifest: Manifest) -> CompareResult:
        parent = _ParentRun(self._config, self._runs, self._manager, self._registry, manifest)
        status = "failed"
        table: Table | None = None
        files: dict[str, Path] = {}
        try:
            parent.started()
            while not self._take_all(manifest, leads=True):
                time.sleep(_POLL_SECONDS)  # others are at work on the last runs, and may be killed
            table = self._table(manifest)
            files = write_files(table, self._runs, manifest, plot(table, self.folder))
            status = "failed" if table.errors else "finished"
            return CompareResult(self.folder, status, table, files)
        except (KeyboardInterrupt, Interrupted) as error:
            status = "interrupted"
            raise self._interrupted(manifest) from error
        finally:
            parent.finished(status, table, files.values())

    def _help(self) -> bool:
        """Take what the leading process leaves; False if it is gone before there was anything to take."""
        _log.info("Another process leads the comparison in %s; this one takes runs that nobody has.", self.folder)
        while not (manifest := Manifest.open(*self._of_the_manifest)).is_measured(self._variants):
            with self._claimed(_LEAD) as free:
                if free:
                    return False
            time.sleep(_POLL_SECONDS)
        try:
            if not self._take_all(manifest, leads=False):
                _log.info("Other processes are at work on the last runs.")
        except (KeyboardInterrupt, Interrupted) as error:
            raise self._interrupted(manifest) from error
        return True

    def _interrupted(self, manifest: Manifest) -> Interrupted:
        finished = sum(found.status == FINISHED for found in manifest.outcomes(self._runs).values())
        return Interrupted(
            f"The comparison was stopped; {finished} of {len(self._runs)} runs are finished in {self.folder}. The "
            "same command goes on where it stopped."
        )

    def _take_all(self, manifest: Manifest, *, leads: bool) -> bool:
        """Take one run after another; False if other processes had some, which may not have finished them."""
        alone = True
        for number, run in enumerate(self._runs, 1):
            place = f"Run {number} of {len(self._runs)}"
            with self._claimed(f"run-{run.name}") as ours:
                if not ours:
                    alone = False
                elif manifest.is_done(run):
                    _log.info("%s: %s is finished.", place, run.name)
                else:
                    self._take(run, manifest, place)
                    manifest.write(self._runs)
                    if leads:
                        write_files(self._table(manifest), self._runs, manifest)
        return alone

    def _take(self, run: PlannedRun, manifest: Manifest, place: str) -> None:
        """Train and score one run, or record why not."""
        _log.info("%s: %s", place, run.name)
        record = manifest.records[run.variant.name]
        error: str | None = None
        try:
            if record.images is None:
                raise FreeflowError(record.error or "Its cost could not be measured.")
            begun = (run.folder / "config.yaml").is_file()
            for left in [] if begun else run.folder.glob(".*.partial"):
                left.unlink()  # of a process that was killed while it began the run
            config = run.config(with_length(run.variant.config, record.images))
            with memory_told(config, self._registry):
                Run(
                    config,
                    "distill",
                    self._manager,
                    output=run.folder,
                    resume=begun,
                    membership=_membership(run, self._config, manifest),
                    scorer=functools.partial(Scoring, shared=self._shared_rows(run.variant, manifest)),
                ).execute()
        except Interrupted:
            raise
        except Exception as raised:
            if _disk_is_full(raised):
                raise
            error = _described(raised)
            _log.warning("The run %s failed: %s The comparison goes on.", run.name, error)
        manifest.tried(run, error)
        free_memory()

    def _shared_rows(self, variant: Variant, manifest: Manifest) -> SharedRows:
        """What all runs scored alike have in common; a finished run, perhaps of an earlier start, has the rows already.

        The teacher's samples themselves are nowhere on disk and are drawn again by the first run of a start.
        """
        key = variant.evaluation_key
        if key not in self._shared:
            alike = manifest.outcomes([run for run in self._runs if run.variant.evaluation_key == key]).values()
            scores = next((found.scores for found in alike if found.status == FINISHED), {})
            self._shared[key] = SharedRows(rows={row: scores[row] for row in (TEACHER_1, DATA, FLOOR) if row in scores})
        return self._shared[key]

    def _table(self, manifest: Manifest) -> Table:
        return make_table(manifest, self._runs, self._config.comparison.score)

    @property
    def _of_the_manifest(self) -> tuple[Path, CompareConfig, Sequence[Variant]]:
        return self.folder, self._config, self._variants

    @contextlib.contextmanager
    def _claimed(self, name: str) -> Iterator[bool]:
        """Whether a lock of the folder is ours meanwhile. A folder in which nothing was written is removed."""
        ours = False
        try:
            with claimed(self.folder / LOCKS / name) as ours:
                yield ours
        finally:
            if ours and [path.name for path in self.folder.iterdir()] == [LOCKS]:
                shutil.rmtree(self.folder)

    @contextlib.contextmanager
    def _full_disk_reported(self) -> Iterator[None]:
        """A full disk ends the comparison, since every further run would fail by it; other errors pass."""
        try:
            yield
        except (Interrupted, ConfigError):
            raise
        except Exception as error:
            if _disk_is_full(error):
                raise FreeflowError(
                    f"The disk is full: the comparison in {self.folder} stopped ({_described(error)}) What was "
                    "finished is kept. Free some space, then run the same command again: it goes on where it stopped."
                ) from error
            if isinstance(error, OSError):
                raise FreeflowError(f"{self.folder} cannot be written: {error}.") from error
            raise


@final
class _ParentRun:
    """The run above all runs of a comparison, as trackers see it: the same key finds it again at the next start."""

    def __init__(
        self,
        config: CompareConfig,
        runs: tuple[PlannedRun, ...],
        manager: Manager,
        registry: Registry,
        manifest: Manifest,
    ) -> None:
        base, own, key, folder = runs[0].variant.config, config.comparison, manifest.key, manifest.folder
        objectives = {"objectives": ", ".join(own.objectives), "seeds": str(own.seeds)}
        tags = {**_common_tags(base, config), **objectives}
        tags |= {"preset": config.preset} if config.preset else {}
        text = config.to_yaml()
        values = yaml.safe_load(text)
        info = RunInfo(config.name, "compare", folder, values, text, manifest.resumed, key=key, tags=tags)
        builder = Builder(registry, torch.device("cpu"), seed=0)
        self._events = Events(manager, [builder.build("tracker", t) for t in base.trackers], info, active=True)
        self._journal = self._events.journal
        self._journal.cut(-1)  # all is told anew at the end
        self._config_file = folder / "comparison.yaml"
        write_text(self._config_file, text)
        began = self._journal.status().get("started", now())
        self._journal.write_status(command="compare", status="running", key=key, tags=tags, started=began)

    def started(self) -> None:
        self._events.started()
        self._events.filed(self._config_file)

    def finished(self, status: str, table: Table | None, files: Iterable[Path]) -> None:
        """Hand over the table, as numbers (at a step that counts finished runs) and as files; always called."""
        with contextlib.suppress(OSError):  # a full disk has already been reported
            if table is not None and table.score is not None:
                done = sum(row.finished for row in table.rows)
                estimates = [(row.name, *pair) for row in table.rows for pair in table.estimates(row).items()]
                scores = {f"{row}/{name}": found.mean for row, name, found in estimates if found is not None}
                self._events.evaluated(Progress(done, done, max(1, done)), scores)
            for path in files:
                self._events.filed(path)
            self._journal.write_status(status=status, ended=now())
        self._events.finished(status)


def _common_tags(base: RunConfig, config: CompareConfig) -> dict[str, str]:
    budget = config.comparison.budget or f"images={base.training.images}"
    return {"teacher": base.teacher.name if base.teacher else "none", "budget": str(budget)}


def _membership(run: PlannedRun, config: CompareConfig, manifest: Manifest) -> Membership:
    """What makes a run the comparison's, for trackers."""
    tags = {"objective": run.variant.objective, "seed": str(run.seed), **_common_tags(run.variant.config, config)}
    sweep = config.comparison.sweep
    if sweep is not None and run.variant.value is not None:
        tags[sweep.setting] = json.dumps(run.variant.value)
    return Membership(RunParent(manifest.key, manifest.folder), tags)


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


def _described(error: BaseException) -> str:
    text = " ".join(str(error).split()) if isinstance(error, FreeflowError) else described(error)
    return text if text.endswith(".") else f"{text}."


def _disk_is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if os.strerror(errno.ENOSPC) in str(error):  # from libraries that have errors of their own
            return True
        error = error.__cause__ or error.__context__
    return False
