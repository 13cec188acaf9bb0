"""Takes all runs of a comparison, one after another; what was finished before is not repeated."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import torch
import yaml
from filelock import FileLock, Timeout

from freeflow_core.config.compare import CompareConfig, objective_config
from freeflow_core.engine.build import Builder
from freeflow_core.engine.events import Events
from freeflow_core.engine.process import choose_device
from freeflow_core.engine.run import Membership, Run
from freeflow_core.engine.run_folder import DEFAULT_PARENT
from freeflow_core.errors import ConfigError, FreeflowError, Interrupted
from freeflow_core.evaluation.scores import DATA, FLOOR, TEACHER_1, SharedRows
from freeflow_core.evaluation.scoring import Scoring
from freeflow_core.files import write_text
from freeflow_core.interfaces.journal import now
from freeflow_core.plugin import Manager, Registry
from freeflow_core.tools.compare.cost import cost_key, free_memory, images_for, measure_cost, with_length
from freeflow_core.tools.compare.manifest import FINISHED, Manifest
from freeflow_core.tools.compare.plan import PlannedRun, Planner, Variant, planned_runs
from freeflow_core.tools.compare.plot import plot
from freeflow_core.tools.compare.table import Table, make_table, write_files
from freeflow_core.types import Progress, RunInfo, RunParent

_log = logging.getLogger("freeflow")
_LOCK = ".lock"


@dataclass(frozen=True)
class CompareResult:
    """What a comparison left behind.

    Args:
        status: ``finished``, ``failed`` (some runs did), or ``planned`` (a dry run).
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
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError(
                "A comparison takes its runs one after another in a single process. Start it without torchrun or "
                "accelerate launch; single runs of it can be resumed with them."
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
        """Take every run that is not finished; a failing one is recorded, and the others go on.

        Raises:
            ConfigError: another comparison in the folder, or parts that do not fit each other.
            Interrupted: Ctrl-C or SIGTERM; the same command goes on.
            FreeflowError: a full disk, or another process at work in the folder; what was finished stays.
        """
        with self._full_disk_reported(), self._locked():
            manifest = self._open()
            manifest.write(self._runs)
            return self._execute(manifest)

    def _open(self) -> Manifest:
        """The manifest, with every variant's length: kept there, for a second start must train the same runs."""
        manifest = Manifest.open(self.folder, self._config, self._variants)
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

    def _execute(self, manifest: Manifest) -> CompareResult:
        parent = _ParentRun(self._config, self._runs, self._manager, self._registry, manifest)
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
            return CompareResult(self.folder, status, table, files)
        except (KeyboardInterrupt, Interrupted) as error:
            status = "interrupted"
            finished = sum(found.status == FINISHED for found in manifest.outcomes(self._runs).values())
            raise Interrupted(
                f"The comparison was stopped; {finished} of {len(self._runs)} runs are finished in {self.folder}. The "
                "same command goes on where it stopped."
            ) from error
        finally:
            parent.finished(status, table, files.values())

    def _take(self, run: PlannedRun, manifest: Manifest, parent: _ParentRun, place: str) -> bool:
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
            begun = (run.folder / "config.yaml").is_file()
            for left in [] if begun else run.folder.glob(".*.partial"):
                left.unlink()  # of a process that was killed while it began the run
            Run(
                run.config(with_length(run.variant.config, record.images)),
                "distill",
                self._manager,
                output=run.folder,
                resume=begun,
                membership=parent.membership(run),
                scorer=functools.partial(Scoring, shared=self._shared_rows(run.variant, manifest)),
            ).execute()
        except Interrupted:
            raise
        except Exception as error:
            if _disk_is_full(error):
                raise
            manifest.errors[run.name] = _described(error)
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
            self._shared[key] = SharedRows(rows={row: scores[row] for row in (TEACHER_1, DATA, FLOOR) if row in scores})
        return self._shared[key]

    def _table(self, manifest: Manifest) -> Table:
        return make_table(manifest, self._runs, self._config.comparison.score)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Two processes in one folder would train the same runs. A folder in which nothing was written is removed."""
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
        self._parent = RunParent(key, folder)
        self._sweep = own.sweep.setting if own.sweep else None
        self._tags = {
            "teacher": base.teacher.name if base.teacher else "none",
            "budget": str(own.budget or f"images={base.training.images}"),
        }
        tags = {**self._tags, "objectives": ", ".join(own.objectives), "seeds": str(own.seeds)}
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

    def membership(self, run: PlannedRun) -> Membership:
        tags = {"objective": run.variant.objective, "seed": str(run.seed), **self._tags}
        if self._sweep is not None and run.variant.value is not None:
            tags[self._sweep] = json.dumps(run.variant.value)
        return Membership(self._parent, tags)

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
    text = " ".join(str(error).split())
    if not isinstance(error, FreeflowError):
        text = f"{type(error).__name__}: {text}".rstrip(": ")
    return text if text.endswith(".") else f"{text}."


def _disk_is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if os.strerror(errno.ENOSPC) in str(error):  # from libraries that have errors of their own
            return True
        error = error.__cause__ or error.__context__
    return False
