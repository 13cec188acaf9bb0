"""Takes all runs of a comparison, one after another; what was finished before is not repeated."""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import torch
from filelock import FileLock, Timeout

from freeflow_core.config import RunConfig
from freeflow_core.config.compare import CompareConfig
from freeflow_core.config.load_compare import objective_config
from freeflow_core.engine.build import Builder
from freeflow_core.engine.device import choose_device
from freeflow_core.engine.run import Run
from freeflow_core.engine.run_folder import DEFAULT_PARENT
from freeflow_core.errors import ConfigError, FreeflowError, Interrupted
from freeflow_core.evaluation.scores import DATA, TEACHER_1, SharedRows
from freeflow_core.evaluation.scoring import Scoring
from freeflow_core.plugin import Manager, Registry
from freeflow_core.tools.compare.budget import with_length
from freeflow_core.tools.compare.failures import describe, disk_is_full, full_disk_reported
from freeflow_core.tools.compare.files import teacher_lines, write_files
from freeflow_core.tools.compare.lengths import fix_lengths
from freeflow_core.tools.compare.manifest import Manifest
from freeflow_core.tools.compare.outcomes import FINISHED, Outcome, PlannedRun, outcome, planned_runs
from freeflow_core.tools.compare.plot import plot
from freeflow_core.tools.compare.table import Table, make_table
from freeflow_core.tools.compare.tracking import ParentRun
from freeflow_core.tools.compare.variants import Planner, Variant

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
        self._files: dict[str, Path] = {}
        self._finished: dict[str, Outcome] = {}

    def plan(self) -> CompareResult:
        """Measure what each objective costs; write and train nothing. Raises ``ConfigError``."""
        manifest = Manifest.open(self.folder, self._config, self._variants)
        self._fix_lengths(manifest)
        return CompareResult(self.folder, "planned", self._table(manifest))

    def execute(self) -> CompareResult:
        """Take every run that is not finished; a failing one is recorded, and the others go on.

        Raises:
            ConfigError: another comparison in the folder, or parts that do not fit each other.
            Interrupted: Ctrl-C or SIGTERM; the same command goes on.
            FreeflowError: a full disk, or another process at work in the folder; what was finished stays.
        """
        with self._locked(), full_disk_reported(self.folder):
            manifest = Manifest.open(self.folder, self._config, self._variants)
            self._fix_lengths(manifest)
            self._write_manifest(manifest)
            return self._execute(manifest)

    def _planned(self) -> tuple[Variant, ...]:
        device = choose_device(self._config_of_first().runtime)
        variants = Planner(self._config, Builder(self._registry, device, seed=0)).variants()
        _free()
        return variants

    def _config_of_first(self) -> RunConfig:
        return objective_config(
            self._registry, self._config, self._config.comparison.objectives[0], self._config.values[0]
        )

    def _execute(self, manifest: Manifest) -> CompareResult:
        builder = Builder(self._registry, torch.device("cpu"), seed=0)
        parent = ParentRun(
            self._config,
            self._runs,
            self._manager,
            builder,
            key=manifest.key,
            folder=self.folder,
            resumed=manifest.resumed,
        )
        status, table = "failed", None
        try:
            parent.started()
            for number, run in enumerate(self._runs, 1):
                self._take(run, manifest, parent, f"Run {number} of {len(self._runs)}")
            table = self._table(manifest)
            self._write(table, manifest, pictures=plot(table, self._runs[0].variant.config.evaluation, self.folder))
            status = "failed" if table.errors else "finished"
            own = teacher_lines(table, self._runs[0].variant.config.evaluation)
            return CompareResult(self.folder, status, table, own, dict(self._files), table.errors)
        except (KeyboardInterrupt, Interrupted) as error:
            status = "interrupted"
            raise Interrupted(
                f"The comparison was stopped; {self._num_finished(manifest)} of {len(self._runs)} runs are finished in "
                f"{self.folder}. The same command goes on where it stopped."
            ) from error
        finally:
            parent.finished(status, table, self._files.values())

    def _take(self, run: PlannedRun, manifest: Manifest, parent: ParentRun, place: str) -> None:
        """Train and score one run, or say why not."""
        if outcome(run, manifest.errors).status == FINISHED:
            _log.info("%s: %s is finished.", place, run.name)
            return
        _log.info("%s: %s", place, run.name)
        manifest.errors.pop(run.name, None)
        record = manifest.records[run.variant.name]
        try:
            if record.images is None:
                raise FreeflowError(record.error or "Its cost could not be measured.")
            config = run.config(with_length(run.variant.config, record.images))
            _clear_leftovers(run.folder)
            Run(
                config,
                "distill",
                self._manager,
                output=run.folder,
                resume=(run.folder / "config.yaml").is_file(),
                membership=parent.membership(run),
                scorer=functools.partial(Scoring, shared=self._shared_rows(config, manifest)),
            ).execute()
        except Interrupted:
            raise
        except Exception as error:
            if disk_is_full(error):
                raise
            manifest.errors[run.name] = describe(error)
            _log.warning("The run %s failed: %s The comparison goes on.", run.name, manifest.errors[run.name])
        _free()
        self._write_manifest(manifest)
        self._write(self._table(manifest), manifest)

    def _shared_rows(self, config: RunConfig, manifest: Manifest) -> SharedRows:
        """What all runs scored alike have in common; a finished run, perhaps of an earlier start, has the rows already.

        The teacher's samples themselves are nowhere on disk and are drawn again by the first run of a start.
        """
        key = _evaluation_key(config)
        if key not in self._shared:
            alike = (run.name for run in self._runs if _evaluation_key(run.variant.config) == key)
            outcomes = self._outcomes(manifest)
            scores = next((o.scores for name in alike if (o := outcomes[name]).status == FINISHED), {})
            self._shared[key] = SharedRows(rows={row: scores[row] for row in (TEACHER_1, DATA) if row in scores})
        return self._shared[key]

    def _fix_lengths(self, manifest: Manifest) -> None:
        fix_lengths(manifest, self._variants, self._config.comparison.budget, self._registry)

    def _write_manifest(self, manifest: Manifest) -> None:
        manifest.write({name: found.status for name, found in self._outcomes(manifest).items()})

    def _table(self, manifest: Manifest) -> Table:
        return make_table(
            manifest,
            self._runs,
            self._outcomes(manifest),
            score=self._config.comparison.score,
            few_steps=self._runs[0].variant.config.evaluation.few_steps,
            batch_sizes={variant.name: variant.config.training.batch_size for variant in self._variants},
            one_teacher=len({_evaluation_key(variant.config) for variant in self._variants}) == 1,
        )

    def _write(self, table: Table, manifest: Manifest, pictures: Mapping[str, Path] | None = None) -> None:
        costs = {name: record.cost.rows for name, record in manifest.records.items() if record.cost is not None}
        self._files = write_files(table, self._runs, self._outcomes(manifest), costs, pictures or {}, self.folder)
        for path in (pictures or {}).values():
            self._files["plot"] = path

    def _outcomes(self, manifest: Manifest) -> dict[str, Outcome]:
        for run in self._runs:
            if run.name not in self._finished and (found := outcome(run, manifest.errors)).status == FINISHED:
                self._finished[run.name] = found
        return {run.name: self._finished.get(run.name) or outcome(run, manifest.errors) for run in self._runs}

    def _num_finished(self, manifest: Manifest) -> int:
        return sum(found.status == FINISHED for found in self._outcomes(manifest).values())

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


def _clear_leftovers(folder: Path) -> None:
    """A process that was killed while it began the run left at most a file that is not whole."""
    if folder.is_dir() and not (folder / "config.yaml").is_file():
        for path in folder.glob(".*.partial"):
            path.unlink()


def _evaluation_key(config: RunConfig) -> str:
    """What the teacher's own samples and scores depend on."""
    parts = {"teacher", "codec", "reference", "evaluation", "runtime"}
    return config.model_dump_json(include=parts)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
