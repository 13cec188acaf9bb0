"""What a comparison is, and how far it has come: ``comparison.json`` in its folder."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self, final

from freeflow_core import __version__
from freeflow_core.config import RunConfig
from freeflow_core.config.compare import CompareConfig
from freeflow_core.config.differences import differences
from freeflow_core.errors import ConfigError
from freeflow_core.files import write_text
from freeflow_core.tools.compare.cost import Cost
from freeflow_core.tools.compare.passes import Rows
from freeflow_core.tools.compare.variants import Variant

MANIFEST_FILE = "comparison.json"
_VERSION = 1
_FREE_TO_CHANGE = ("trackers", "logging", "checkpointing", "samples")
"""Settings that change neither weights nor scores. Unlike a run, a comparison may not change its evaluation."""


@dataclass
class Record:
    """One row of the table: its runs' configuration before seed and length, and what was measured before them."""

    objective: str
    value: Any
    config: Mapping[str, Any]
    cost: Cost | None = None
    images: int | None = None
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

    @classmethod
    def open(cls, folder: Path, config: CompareConfig, variants: Sequence[Variant]) -> Self:
        """Begin in a new or empty folder, or go on with the comparison in it. Nothing is written yet.

        Objectives and seeds may be added to a comparison; everything else has to agree.

        Raises:
            ConfigError: a folder that holds something else, or another comparison; the differences are listed.
        """
        settings, path = _settings(config), folder / MANIFEST_FILE
        own = cls._read(path) if path.is_file() else cls(folder, uuid.uuid4().hex, {})
        if (
            not own.resumed
            and folder.exists()
            and (not folder.is_dir() or any(p for p in folder.iterdir() if p.name[0] != "."))
        ):
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
                own.records[variant.name] = Record(variant.objective, variant.value, comparable(variant.config))
        return own

    def write(self, runs: Mapping[str, str]) -> None:
        """Write ``comparison.json``, with the status of each of ``runs``.

        Raises ``OSError`` when the disk is full; what was written before stays then.
        """
        values = {
            "version": _VERSION,
            "freeflow_version": __version__,
            "key": self.key,
            **self.settings,
            "variants": {name: asdict(record) for name, record in self.records.items()},
            "runs": dict(runs),
            "errors": self.errors,
        }
        write_text(self.folder / MANIFEST_FILE, json.dumps(values, indent=1))

    @classmethod
    def _read(cls, path: Path) -> Self:
        try:
            stored = json.loads(path.read_text("utf-8"))
            records = {name: _record(values) for name, values in stored.pop("variants").items()}
            settings = {key: stored[key] for key in ("name", "seeds", "budget", "sweep")}
            return cls(path.parent, stored["key"], settings, records, stored["errors"], resumed=True)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"{path} cannot be read as a comparison ({type(error).__name__}: {error}), so it cannot be continued. "
                "Choose another --output."
            ) from error

    def _changes(self, settings: Mapping[str, Any], variants: Sequence[Variant]) -> list[str]:
        if not self.settings:
            return []
        wanted = {variant.name: variant for variant in variants}
        found = differences(_without_seeds(self.settings), _without_seeds(settings))
        if settings["seeds"] < self.settings["seeds"]:
            found.append(f"seeds: {self.settings['seeds']} -> {settings['seeds']}")
        for name, record in self.records.items():
            if name in wanted:
                changed = differences(record.config, comparable(wanted[name].config))
                found += [f"{name}: {change}" for change in changed]
            elif settings["sweep"] == self.settings["sweep"]:
                found.append(f"{name} is missing")
        return found


def comparable(config: RunConfig) -> dict[str, Any]:
    """What must not change between two starts of a comparison, as JSON values."""
    values: dict[str, Any] = config.model_dump(mode="json")
    return {key: value for key, value in values.items() if key not in _FREE_TO_CHANGE}


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


def _without_seeds(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != "seeds"}


def _record(values: Mapping[str, Any]) -> Record:
    record = Record(**values)
    if (cost := values["cost"]) is not None:
        rows = {name: Rows(**row) for name, row in cost["rows"].items()}
        record.cost = Cost(**{**cost, "rows": rows})
    return record
