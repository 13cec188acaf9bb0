"""The plan of runs: what each objective trains, on what, and which values of a sweep concern it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, final

from freeflow_core.config import ComponentChoice, RunConfig
from freeflow_core.config.compare import CompareConfig
from freeflow_core.config.load import resolve_choice
from freeflow_core.config.load_compare import objective_config
from freeflow_core.engine.build import Builder
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import Objective, Source, Teacher
from freeflow_core.tools.compare.students import fitting_student

_PRIOR = "prior"


@dataclass(frozen=True)
class Variant:
    """What the runs of one row of the table have in common; their seeds and their length are still to be set.

    Args:
        name: names the runs' folders: the objective, and the swept value where it matters.
        value: of the sweep; None without a sweep, or where it changes nothing.
    """

    name: str
    objective: str
    value: Any
    config: RunConfig


@final
class Planner:
    """Builds teachers and objectives to see what they need; everything built is dropped with the planner."""

    def __init__(self, config: CompareConfig, builder: Builder) -> None:
        self._config = config
        self._builder = builder
        self._built: dict[str, Any] = {}
        self._data_offered = False
        self._data_used = False

    def variants(self) -> tuple[Variant, ...]:
        """All rows of the comparison, in the order in which objectives and values were named.

        An objective for which all values of the sweep make the same run, such as a data-free one when the data are
        swept, gets one row.

        Raises:
            ConfigError: an objective that needs data without a source, or the reverse; no student for an objective;
                a sweep that changes nothing.
        """
        found = [v for objective in self._config.comparison.objectives for v in self._of_objective(objective)]
        sweep = self._config.comparison.sweep
        if sweep is not None and all(variant.value is None for variant in found):
            raise ConfigError(f"The sweep of {sweep.setting} changes none of these runs: no objective here uses it.")
        if self._data_offered and not self._data_used:
            raise ConfigError(
                f"None of these objectives trains on data ({', '.join(self._config.comparison.objectives)}), so the "
                "source would never be used. Leave it out; held-out data to compare with is the setting `reference`."
            )
        return tuple(found)

    def _of_objective(self, objective: str) -> list[Variant]:
        values, sweep = self._config.values, self._config.comparison.sweep
        runs = [self._fitted(objective, value) for value in values]
        if sweep is None or len({run.model_dump_json() for run in runs}) == 1:
            return [Variant(objective, objective, None, runs[0])]
        setting = sweep.setting.rpartition(".")[2]
        names = [f"{objective}-{setting}-{label}" for label in _labels(values)]
        return [Variant(name, objective, v, run) for name, v, run in zip(names, values, runs, strict=True)]

    def _fitted(self, objective: str, value: Any) -> RunConfig:
        """The objective's run with the source and the student that it needs."""
        run = objective_config(self._builder.registry, self._config, objective, value)
        assert run.teacher is not None  # load_compare_config has seen to it
        teacher: Teacher = self._cached(f"teacher {run.teacher.model_dump_json()}", lambda: self._teacher(run))
        built: Objective = self._cached(
            f"objective {run.objective.model_dump_json()} {run.teacher.model_dump_json()}",
            lambda: self._builder.build("objective", run.objective, teacher=teacher),
        )
        student = fitting_student(self._builder.registry, run, built.requires)
        return run.model_copy(update={"source": self._source(objective, run, built), "student": student})

    def _source(self, objective: str, run: RunConfig, built: Objective) -> ComponentChoice:
        own = self._config.comparison.settings_for.get(objective, {})
        source: Source | None = None
        if built.needs_data or "source" in own:
            source = self._cached(
                f"source {run.source.model_dump_json()}", lambda: self._builder.build("source", run.source)
            )
        if built.needs_data and source is not None:
            if not source.has_data:
                raise ConfigError(
                    f"The objective {objective!r} trains on data, but the comparison names no source of data. Choose "
                    "one, for example --source digits, or leave the objective out."
                )
            self._data_offered = self._data_used = True
            return run.source
        if source is not None and source.has_data:
            raise ConfigError(
                f"The objective {objective!r} is data-free with these options, but it is given the source "
                f"{run.source.name!r} of its own, which it would never see. Remove that setting."
            )
        self._data_offered |= run.source.name != _PRIOR
        return resolve_choice(self._builder.registry, "source", ComponentChoice(name=_PRIOR), "source")

    def _teacher(self, run: RunConfig) -> Teacher:
        assert run.teacher is not None
        return self._builder.teacher(run.teacher)

    def _cached(self, key: str, build: Any) -> Any:
        if key not in self._built:
            self._built[key] = build()
        return self._built[key]


def _labels(values: Iterable[Any]) -> list[str]:
    """The values as parts of a folder's name; numbered where two would look alike."""
    texts = [v if isinstance(v, str) else json.dumps(v) for v in values]
    labels = [re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("_")[:40] for text in texts]
    if len(set(labels)) == len(labels) and all(labels):
        return labels
    return [f"{number}-{label}".rstrip("-") for number, label in enumerate(labels)]
