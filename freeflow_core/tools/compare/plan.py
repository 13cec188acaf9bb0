"""The plan of runs: what each objective trains, with which student and data, and which values of a sweep concern it."""

import functools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from freeflow_core.config import ComponentChoice, ComponentConfig, RunConfig
from freeflow_core.config.compare import CompareConfig, objective_config
from freeflow_core.config.load import resolve_choice
from freeflow_core.engine.build import Builder
from freeflow_core.errors import ConfigError, PluginError
from freeflow_core.interfaces import Objective, Source
from freeflow_core.plugin import Registry

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

    @property
    def evaluation_key(self) -> str:
        return self.config.model_dump_json(include={"teacher", "codec", "reference", "evaluation", "runtime"})


@dataclass(frozen=True)
class PlannedRun:
    """One objective, one value of the sweep, one seed."""

    name: str
    variant: Variant
    seed: int
    folder: Path

    def config(self, run: RunConfig) -> RunConfig:
        """``run``, the variant's of the right length, with this run's name and seed."""
        return run.model_copy(update={"name": self.name, "seed": self.seed})


def planned_runs(variants: Sequence[Variant], num_seeds: int, folder: Path) -> tuple[PlannedRun, ...]:
    """Every variant with the first seed, then every variant with the next: an early look sees all of them."""
    return tuple(
        PlannedRun(name, variant, seed, folder / name)
        for number in range(num_seeds)
        for variant in variants
        for seed in [variant.config.seed + number]
        for name in [f"{variant.name}-seed{seed}"]
    )


@final
class Planner:
    """Builds teachers and objectives to see what they need; everything built is dropped with the planner."""

    def __init__(self, config: CompareConfig, builder: Builder) -> None:
        self._config, self._builder = config, builder
        self._built: dict[str, Any] = {}
        self._data_offered = self._data_used = False

    def variants(self) -> tuple[Variant, ...]:
        """All rows of the comparison, in the order in which objectives and values were named.

        An objective for which all values of the sweep make the same run, such as a data-free one when the data are
        swept, gets one row.

        Raises:
            ConfigError: an objective that needs data without a source, or the reverse; no student for an objective;
                a sweep that changes nothing.
        """
        comparison = self._config.comparison
        found = [variant for objective in comparison.objectives for variant in self._of_objective(objective)]
        sweep = comparison.sweep
        if sweep is not None and all(variant.value is None for variant in found):
            raise ConfigError(f"The sweep of {sweep.setting} changes none of these runs: no objective here uses it.")
        if self._data_offered and not self._data_used:
            raise ConfigError(
                f"None of these objectives trains on data ({', '.join(comparison.objectives)}), so the source would "
                "never be used. Leave it out; held-out data to compare with is the setting `reference`."
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
        registry = self._builder.registry
        run = objective_config(registry, self._config, objective, value)
        assert run.teacher is not None  # load_compare_config has seen to it
        teacher = self._cached("teacher", run.teacher)
        built: Objective = self._cached("objective", run.objective, teacher=teacher)
        student = fitting_student(registry, run, built.requires)
        return run.model_copy(update={"source": self._source(objective, run, built), "student": student})

    def _source(self, objective: str, run: RunConfig, built: Objective) -> ComponentChoice:
        own = self._config.comparison.settings_for.get(objective, {})
        source: Source | None = None
        if built.needs_data or "source" in own:
            source = self._cached("source", run.source)
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
        self._data_offered |= self._config.wants_data and run.source.name != _PRIOR
        return resolve_choice(self._builder.registry, "source", ComponentChoice(name=_PRIOR), "source")

    def _cached(self, kind: str, choice: ComponentChoice, **context: Any) -> Any:
        key = f"{kind} {choice.model_dump_json()} {[id(part) for part in context.values()]}"
        if key not in self._built:
            build = self._builder.teacher if kind == "teacher" else functools.partial(self._builder.build, kind)
            self._built[key] = build(choice, **context)
        return self._built[key]


def fitting_student(registry: Registry, run: RunConfig, requires: type[Any]) -> ComponentChoice:
    """The run's own student if it is a ``requires``; else the one student of that class, first in the same plugin.

    The options that both have, such as width and depth, are taken along, so that the networks stay comparable.

    Raises:
        ConfigError: no student of that class, or several to choose from.
    """

    def fits(name: str) -> bool:
        try:
            return issubclass(registry.component("student", name).load_target(), requires)
        except PluginError:  # a student whose own requirements are not installed
            return False

    student = run.student
    if issubclass(registry.component("student", student.name).load_target(), requires):
        return student
    fitting = [name for name in registry.components("student") if fits(name)]
    plugin = registry.origin("student", student.name).name
    chosen = [name for name in fitting if registry.origin("student", name).name == plugin] or fitting
    if len(chosen) != 1:
        found = f"several are: {', '.join(chosen)}" if chosen else "none is offered"
        raise ConfigError(
            f"The objective {run.objective.name!r} trains a {requires.__name__}, which the student "
            f"{student.name!r} is not, and {found}. Choose one with "
            f"--set-for {run.objective.name}:student=NAME, or leave the objective out."
        )
    options = student.options
    given = options.model_dump(exclude_unset=True) if isinstance(options, ComponentConfig) else options
    known = registry.component("student", chosen[0]).load_config_class().model_fields
    kept = {key: value for key, value in given.items() if key in known}
    return resolve_choice(registry, "student", ComponentChoice(name=chosen[0], options=kept), "student")


def _labels(values: Iterable[Any]) -> list[str]:
    """The values as parts of a folder's name; numbered where two would look alike."""
    texts = [v if isinstance(v, str) else json.dumps(v) for v in values]
    labels = [re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("_")[:40] for text in texts]
    if len(set(labels)) == len(labels) and all(labels):
        return labels
    return [f"{number}-{label}".rstrip("-") for number, label in enumerate(labels)]
