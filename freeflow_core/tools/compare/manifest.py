"""What a comparison is, and how far it has come: ``comparison.json`` in its folder, and the folders of its runs."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Self, final

from filelock import FileLock

from freeflow_core.config import RunConfig
from freeflow_core.config.compare import CompareConfig
from freeflow_core.config.load import changed_settings, differences
from freeflow_core.engine.run_folder import RunFolder
from freeflow_core.evaluation.scores import STUDENT, metric_name
from freeflow_core.tools.compare.cost import Cost
from freeflow_core.tools.compare.plan import PlannedRun, Variant
from freeflow_core.tools.job_folder import JobFolder
from freeflow_core.types import Scores

MANIFEST_FILE = "comparison.json"
LOCKS = ".locks"
"""Folder of the files by whose locks processes share a comparison."""
_FREE_TO_CHANGE = ("trackers", "logging", "checkpointing", "samples")
"""Settings that change neither weights nor scores. Unlike a run, a comparison may not change its evaluation."""

FINISHED, FAILED, UNFINISHED, WAITING = "finished", "failed", "unfinished", "waiting"


@dataclass
class Record:
    """One row of the table: its runs' configuration before seed and length, and what was measured before them."""

    objective: str
    value: Any
    config: Mapping[str, Any]
    cost: Cost | None = None
    images: int | None = None
    error: str | None = None


@dataclass(frozen=True)
class Outcome:
    """How far a run has come.

    Args:
        status: ``finished``, ``failed``, ``unfinished`` (begun, and not at its end), or ``waiting``.
        scores: rows of scores, once finished.
        during: the student's scores in one step during training, by the images seen.
        images_per_second: of training, without evaluation: the median of what was logged.
    """

    status: str
    scores: Scores = field(default_factory=dict)
    images_per_second: float | None = None
    error: str | None = None
    during: Mapping[int, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Stored:
    """What ``comparison.json`` holds, but for the runs' status, which is for people."""

    key: str
    name: str
    seeds: int
    budget: str | None
    sweep: dict[str, Any] | None
    variants: dict[str, Record]
    errors: dict[str, str]


@final
@dataclass
class Manifest:
    """Everything that must be found again by the same command; written atomically after each change.

    Attributes:
        key: the comparison's identity for trackers.
        records: by the name of the variant.
        errors: why a run failed, by its name; a run that is started again loses its entry.
    """

    folder: Path
    key: str
    settings: dict[str, Any]
    records: dict[str, Record] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    resumed: bool = False
    _finished: dict[str, Outcome] = field(default_factory=dict, init=False, repr=False, compare=False)
    _tried: dict[str, str | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def open(cls, folder: Path, config: CompareConfig, variants: Sequence[Variant]) -> Self:
        """Begin in a new or empty folder, or go on with the comparison in it. Nothing is written yet.

        Objectives and seeds may be added to a comparison; everything else has to agree.

        Raises:
            ConfigError: a folder that holds something else, or another comparison; the differences are listed.
        """
        own_config, job = config.comparison, _job(folder)
        settings = {
            "name": config.name,
            "seeds": own_config.seeds,
            "budget": None if own_config.budget is None else str(own_config.budget),
            "sweep": None if own_config.sweep is None else own_config.sweep.model_dump(mode="json"),
        }
        stored = job.read()
        if stored is None:
            job.check_empty()
            own = cls(folder, uuid.uuid4().hex, settings)
        else:
            before = {name: getattr(stored, name) for name in settings}
            own = cls(folder, stored.key, before, stored.variants, stored.errors, resumed=True)
            job.check_same(own._changes(settings, variants))
            own.settings = settings
        for variant in variants:
            record = Record(variant.objective, variant.value, _comparable(variant.config))
            own.records.setdefault(variant.name, record)
        return own

    def write(self, runs: Sequence[PlannedRun], *, forget_errors: bool = False) -> None:
        """Write ``comparison.json``, with the status of each of ``runs``, and the errors of other processes' runs.

        ``forget_errors``: what failed before this start is tried again.

        Raises ``OSError`` when the disk is full; what was written before stays then.
        """
        locks = self.folder / LOCKS
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / MANIFEST_FILE):
            self.read_errors()
            if forget_errors:
                self.errors = {}
            self._write(runs)

    def read_errors(self) -> None:
        """Take up what other processes wrote of theirs."""
        if (stored := _job(self.folder).read()) is not None:
            known = stored.errors | self._tried
            self.errors = {name: error for name, error in known.items() if error is not None}

    def _write(self, runs: Sequence[PlannedRun]) -> None:
        statuses = {name: found.status for name, found in self.outcomes(runs).items()}
        variants = {name: asdict(record) for name, record in self.records.items()}
        described = {"version": 1, "key": self.key, **self.settings, "variants": variants}
        _job(self.folder).write({**described, "runs": statuses, "errors": self.errors})

    def is_measured(self, variants: Sequence[Variant]) -> bool:
        """Whether the length of every variant's runs is known, or why it cannot be."""
        records = [self.records[variant.name] for variant in variants]
        return all(record.images is not None or record.error is not None for record in records)

    def is_done(self, run: PlannedRun) -> bool:
        """Whether it is finished, or failed since this start, by whichever process."""
        self.read_errors()
        return run.name in self.errors or self.outcomes([run])[run.name].status == FINISHED

    def tried(self, run: PlannedRun, error: str | None) -> None:
        """A run was taken to its end, or failed."""
        self._tried[run.name] = error
        self.errors.pop(run.name, None)
        if error is not None:
            self.errors[run.name] = error

    def outcomes(self, runs: Sequence[PlannedRun]) -> dict[str, Outcome]:
        """What each run has come to, by its name; a finished one's folder is read once."""
        found = {run.name: self._finished.get(run.name) or self._outcome(run) for run in runs}
        self._finished |= {name: outcome for name, outcome in found.items() if outcome.status == FINISHED}
        return found

    def _outcome(self, run: PlannedRun) -> Outcome:
        folder, scores = RunFolder(run.folder), {}
        with suppress(OSError, ValueError):
            scores = json.loads(folder.scores_file.read_text("utf-8"))
        status = folder.journal.status().get("status")
        if status == FINISHED and scores:
            metrics = [record for record, _ in folder.journal.metrics()]
            speeds = [speed for record in metrics if (speed := record.values.get("images_per_second")) is not None]
            prefix = metric_name(STUDENT, "")
            during: dict[int, dict[str, float]] = {}
            for record in metrics:
                own = {n.removeprefix(prefix): value for n, value in record.values.items() if n.startswith(prefix)}
                during |= {record.images: own} if own else {}
            return Outcome(FINISHED, scores, median(speeds) if speeds else None, during=during)
        if run.name in self.errors:
            return Outcome(FAILED, error=self.errors[run.name])
        return Outcome(WAITING if status is None else UNFINISHED)

    def _changes(self, settings: Mapping[str, Any], variants: Sequence[Variant]) -> list[str]:
        wanted = {variant.name: variant for variant in variants}
        found = differences(self.settings, {**settings, "seeds": self.settings["seeds"]})
        if settings["seeds"] < self.settings["seeds"]:
            found.append(f"seeds: {self.settings['seeds']} -> {settings['seeds']}")
        for name, record in self.records.items():
            if name in wanted:
                changed = changed_settings(record.config, wanted[name].config, free=_FREE_TO_CHANGE)
                found += [f"{name}: {change}" for change in changed]
            elif settings["sweep"] == self.settings["sweep"]:
                found.append(f"{name} is missing")
        return found


def _job(folder: Path) -> JobFolder[_Stored]:
    return JobFolder(folder, MANIFEST_FILE, _Stored, "a comparison")


def _comparable(config: RunConfig) -> dict[str, Any]:
    """What must not change between two starts of a comparison, as JSON values."""
    return config.model_dump(mode="json", exclude=set(_FREE_TO_CHANGE))
