"""What a comparison is, and how far it has come: ``comparison.json`` in its folder, and the folders of its runs."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Self, final

from pydantic import TypeAdapter

from freeflow_core import __version__
from freeflow_core.config import RunConfig
from freeflow_core.config.compare import CompareConfig
from freeflow_core.config.load import differences
from freeflow_core.engine.run_folder import RunFolder
from freeflow_core.errors import ConfigError
from freeflow_core.files import write_text
from freeflow_core.tools.compare.cost import Record
from freeflow_core.tools.compare.plan import PlannedRun, Variant
from freeflow_core.types import Scores

MANIFEST_FILE = "comparison.json"
_VERSION = 1
_FREE_TO_CHANGE = {"trackers", "logging", "checkpointing", "samples"}
"""Settings that change neither weights nor scores. Unlike a run, a comparison may not change its evaluation."""

FINISHED, FAILED, UNFINISHED, WAITING = "finished", "failed", "unfinished", "waiting"


@dataclass(frozen=True)
class Outcome:
    """How far a run has come.

    Args:
        status: ``finished``, ``failed``, ``unfinished`` (begun, and not at its end), or ``waiting``.
        scores: rows of scores, once finished.
        images_per_second: of training, without evaluation: the median of what was logged.
    """

    status: str
    scores: Scores = field(default_factory=dict)
    images_per_second: float | None = None
    error: str | None = None


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

    @classmethod
    def open(cls, folder: Path, config: CompareConfig, variants: Sequence[Variant]) -> Self:
        """Begin in a new or empty folder, or go on with the comparison in it. Nothing is written yet.

        Objectives and seeds may be added to a comparison; everything else has to agree.

        Raises:
            ConfigError: a folder that holds something else, or another comparison; the differences are listed.
        """
        settings, path = _settings(config), folder / MANIFEST_FILE
        own = cls._read(path) if path.is_file() else cls(folder, uuid.uuid4().hex, settings)
        if not own.resumed and folder.exists() and (not folder.is_dir() or any(folder.glob("[!.]*"))):
            raise ConfigError(
                f"The output folder {folder} already holds other files. Choose another name or --output for this "
                "comparison."
            )
        if changed := own._changes(settings, variants):
            raise ConfigError(
                f"{folder} holds a comparison with other settings, whose runs could not be compared with these. "
                f"Changed: {'; '.join(changed)}. Undo that, or choose another --output. Only objectives and seeds "
                "may be added."
            )
        own.settings = settings
        for variant in variants:
            if variant.name not in own.records:
                own.records[variant.name] = Record(variant.objective, variant.value, _comparable(variant.config))
        return own

    def write(self, runs: Sequence[PlannedRun]) -> None:
        """Write ``comparison.json``, with the status of each of ``runs``.

        Raises ``OSError`` when the disk is full; what was written before stays then.
        """
        values = {
            "version": _VERSION,
            "freeflow_version": __version__,
            "key": self.key,
            **self.settings,
            "variants": {name: asdict(record) for name, record in self.records.items()},
            "runs": {name: found.status for name, found in self.outcomes(runs).items()},
            "errors": self.errors,
        }
        write_text(self.folder / MANIFEST_FILE, json.dumps(values, indent=1))

    def outcomes(self, runs: Sequence[PlannedRun]) -> dict[str, Outcome]:
        """What each run has come to, by its name; a finished one's folder is read once."""
        found = {run.name: self._finished.get(run.name) or self._outcome(run) for run in runs}
        self._finished |= {name: outcome for name, outcome in found.items() if outcome.status == FINISHED}
        return found

    def _outcome(self, run: PlannedRun) -> Outcome:
        """The folder of a finished run has its scores, or it counts as unfinished."""
        folder = RunFolder(run.folder)
        status = folder.journal.status().get("status")
        scores: Scores = _read_json(folder.scores_file)
        if status == FINISHED and scores:
            return Outcome(FINISHED, scores, _images_per_second(folder.journal.metrics_file))
        if run.name in self.errors:
            return Outcome(FAILED, error=self.errors[run.name])
        return Outcome(WAITING if status is None else UNFINISHED)

    @classmethod
    def _read(cls, path: Path) -> Self:
        try:
            stored = json.loads(path.read_text("utf-8"))
            records = TypeAdapter(dict[str, Record]).validate_python(stored["variants"])
            settings = {key: stored[key] for key in ("name", "seeds", "budget", "sweep")}
            return cls(path.parent, stored["key"], settings, records, dict(stored["errors"]), resumed=True)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f"{path} cannot be read as a comparison ({type(error).__name__}: {error}), so it cannot be continued. "
                "Choose another --output."
            ) from error

    def _changes(self, settings: Mapping[str, Any], variants: Sequence[Variant]) -> list[str]:
        wanted = {variant.name: variant for variant in variants}
        found = differences(self.settings, {**settings, "seeds": self.settings["seeds"]})
        if settings["seeds"] < self.settings["seeds"]:
            found.append(f"seeds: {self.settings['seeds']} -> {settings['seeds']}")
        for name, record in self.records.items():
            if name in wanted:
                changed = differences(record.config, _comparable(wanted[name].config))
                found += [f"{name}: {change}" for change in changed]
            elif settings["sweep"] == self.settings["sweep"]:
                found.append(f"{name} is missing")
        return found


def _comparable(config: RunConfig) -> dict[str, Any]:
    """What must not change between two starts of a comparison, as JSON values."""
    return config.model_dump(mode="json", exclude=_FREE_TO_CHANGE)


def _settings(config: CompareConfig) -> dict[str, Any]:
    own = config.comparison
    settings = {
        "name": config.name,
        "seeds": own.seeds,
        "budget": None if own.budget is None else str(own.budget),
        "sweep": None if own.sweep is None else own.sweep.model_dump(mode="json"),
    }
    values: dict[str, Any] = json.loads(json.dumps(settings))  # what reading it back will give
    return values


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def _images_per_second(metrics: Path) -> float | None:
    try:
        lines = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]
    except (OSError, ValueError):
        return None
    values = [float(line["images_per_second"]) for line in lines if "images_per_second" in line]
    return median(values) if values else None
