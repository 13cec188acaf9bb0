"""A comparison: one base run, the objectives that take their turns in it, a budget; merged and checked. No torch."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, field_validator, model_validator

from freeflow_core.config.component import Section
from freeflow_core.config.load import (
    explain,
    lay_settings,
    merge,
    nest,
    parse_assignment,
    read_config_file,
    read_preset,
    resolve,
    with_guidance,
)
from freeflow_core.config.run import RunConfig
from freeflow_core.errors import ConfigError, UnknownComponent

if TYPE_CHECKING:
    from freeflow_core.plugin.registry import Registry

SECTION = "compare"
"""The key of a preset or file under which a comparison's own settings stand; all others are the base run's."""


class Budget(Section):
    """How long every run trains, written ``images=57600`` or ``forwards=1e6``."""

    kind: Literal["images", "forwards"]
    amount: PositiveFloat

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and len(value) == 1 and "kind" not in value:
            value = "=".join(str(part) for part in next(iter(value.items())))
        if not isinstance(value, str):
            return value
        kind, _, amount = (part.strip() for part in value.partition("="))
        if kind in ("images", "forwards"):
            with contextlib.suppress(ValueError):
                return {"kind": kind, "amount": float(amount)}
        raise ValueError("expected images=N or forwards=N; a budget of seconds would depend on the machine's load")

    def __str__(self) -> str:
        amount = f"{self.amount:.0f}" if self.amount == int(self.amount) and self.amount < 1e15 else f"{self.amount:g}"
        return f"{self.kind}={amount}"


class SweepConfig(Section):
    """One setting that takes several values in turn, written ``a.b=0,0.5,1``, ``{a.b: [0, 0.5, 1]}`` or in two keys."""

    setting: str = Field(min_length=1, description="Dotted name, as --set takes it.")
    values: tuple[Any, ...] = Field(min_length=2, description="The values, in the order of the plot.")

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and len(value) == 1:
            ((setting, values),) = value.items()
            return {"setting": setting, "values": values}
        if not isinstance(value, str):
            return value
        setting, _, values = (part.strip() for part in value.partition("="))
        try:
            parsed = yaml.safe_load(f"[{values}]")
        except yaml.YAMLError:
            parsed = None
        if not setting or not parsed:
            raise ValueError("expected a.b=v1,v2,..., e.g. source.augment_strength=0,0.5,1")
        return {"setting": setting, "values": parsed}

    @field_validator("values")
    @classmethod
    def _distinct(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        values = tuple(_number(value) for value in values)
        if len({repr(value) for value in values}) < len(values):
            raise ValueError("the values must differ from each other")
        return values

    @field_validator("setting")
    @classmethod
    def _is_of_a_run(cls, setting: str) -> str:
        if setting in _ELSEWHERE:
            raise ValueError(f"{setting} cannot be swept: {_ELSEWHERE[setting]}")
        return setting


_ELSEWHERE = {
    "seed": "every run is repeated with several seeds anyway (--seeds)",
    "objective": "name the objectives with --objectives",
    "name": "it does not change a run",
    "training.images": "the budget sets it",
}


def _number(value: Any) -> Any:
    """YAML takes 1e-4 for text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


class ComparisonConfig(Section):
    """The section ``compare`` of a preset or file."""

    objectives: tuple[str, ...] = Field((), description="Objectives, by name.")
    seeds: PositiveInt = Field(3, description="Runs of each objective: the seeds seed, seed + 1, ...")
    budget: Budget | None = Field(None, description="images=N or forwards=N of training; null: the base run's length.")
    settings_for: dict[str, dict[str, Any]] = Field(default_factory=dict, description="Settings of single objectives.")
    sweep: SweepConfig | None = Field(None, description="A setting that takes several values, each with all seeds.")
    score: str | None = None
    """Score that is compared; null: the first distance to data, else to the teacher."""

    @field_validator("objectives")
    @classmethod
    def _distinct(cls, objectives: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(objectives)) < len(objectives):
            raise ValueError("an objective is named twice")
        return objectives


@dataclass(frozen=True)
class CompareConfig:
    """A comparison, checked; :func:`objective_config` makes its runs.

    Args:
        name: names the folder.
        comparison: objectives, seeds, budget, sweep.
        base: settings of preset and file.
        settings: settings of the command line for all objectives; those for one are laid over them.
        preset: what the runs begin with.
        wants_data: a source was asked for, rather than found in preset or file.
    """

    name: str
    comparison: ComparisonConfig
    base: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    preset: str | None = None
    wants_data: bool = False

    @property
    def values(self) -> Sequence[Any]:
        """The swept values; ``(None,)`` without a sweep."""
        return self.comparison.sweep.values if self.comparison.sweep else (None,)

    def to_yaml(self) -> str:
        own = self.comparison.model_dump(mode="json") | {"budget": str(self.comparison.budget or "") or None}
        values = {"name": self.name, SECTION: own, "base": dict(self.base), "settings": dict(self.settings)}
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def load_compare_config(
    registry: Registry,
    *,
    preset: str | None = None,
    file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    comparison: Mapping[str, Any] | None = None,
    assignments: Iterable[str] = (),
    assignments_for: Iterable[str] = (),
) -> CompareConfig:
    """Merge and validate a comparison; every objective's configuration is resolved once, so that mistakes show here.

    Args:
        preset: a comparison's preset, or one of ``distill`` as the base run. A file may name one itself.
        file: YAML or JSON: settings of the base run, and the section ``compare``.
        overrides: nested mapping laid over both (what ``--teacher`` and ``--source`` set).
        comparison: settings of the section ``compare``, laid over those of preset and file.
        assignments: ``"a.b=c"`` strings for all objectives.
        assignments_for: ``"objective:a.b=c"`` strings for one.

    Raises ``ConfigError`` for unknown keys or names (with a suggestion), wrong types or values, an unreadable file.
    """
    begins_with, own_layers, base_layers = _layers(registry, preset, file)
    own_layers.append(dict(overrides or {}))
    settings = lay_settings({}, assignments)
    section: dict[str, Any] = {}
    for layer in (*own_layers, settings):
        section = _merged(section, layer.pop(SECTION, {}))
    section = _merged(section, comparison or {})
    if chosen := (comparison or {}).get("objectives"):  # fewer than the preset's: its settings for the others rest
        kept = {name: own for name, own in section.get("settings_for", {}).items() if name in chosen}
        section = {**section, "settings_for": kept}
    for text in assignments_for:
        objective, separator, assignment = text.partition(":")
        if not separator or not objective.strip() or "=" in objective:
            raise ConfigError(
                f"--set-for {text!r} is not of the form OBJECTIVE:a.b=value, e.g. "
                "--set-for freeflow:objective.balance=weighted."
            )
        section = _merged(section, {"settings_for": {objective.strip(): parse_assignment(assignment)}})
    base: dict[str, Any] = {}
    for layer in (*base_layers, *own_layers):
        base = merge(base, layer)
    try:
        checked = ComparisonConfig.model_validate(section)
    except ValidationError as error:
        raise ConfigError(explain(error, ComparisonConfig, f"{SECTION}.")) from None
    named = next((layer["name"] for layer in (settings, *reversed(own_layers)) if "name" in layer), None)
    teacher = merge(base, settings).get("teacher") or "run"
    named = named or (teacher["name"] if isinstance(teacher, Mapping) else teacher)
    wants_data = "source" in settings or "source" in own_layers[-1]
    config = CompareConfig(str(named), checked, base, settings, begins_with, wants_data)
    _check(registry, config)
    return config


def objective_config(registry: Registry, config: CompareConfig, objective: str, value: Any = None) -> RunConfig:
    """The run of one objective, at one value of the sweep: over the base run come the objective's name, the settings
    for all, those for this objective, and the swept value. Student and source are still the base run's.

    Raises ``ConfigError`` for whatever does not resolve; the message begins with the objective.
    """
    base = {"source": "prior", **config.base}
    values = base | {"objective": with_guidance(registry, base, merge(base, {"objective": objective})["objective"])}
    values = merge(values, {key: part for key, part in config.settings.items() if key != "name"})
    values = merge(values, config.comparison.settings_for.get(objective, {}))
    if (sweep := config.comparison.sweep) is not None:
        values = merge(values, nest(sweep.setting.split("."), value))
    values["name"] = objective
    try:
        return resolve(registry, values).from_preset(config.preset)
    except UnknownComponent as error:
        error.args = (f"In the runs of {objective}: {error}",)
        raise
    except ConfigError as error:
        raise ConfigError(f"In the runs of {objective}: {error}") from None


def _layers(
    registry: Registry, preset: str | None, file: Path | None
) -> tuple[str | None, list[dict[str, Any]], list[Any]]:
    """The preset's name; what the comparison itself says (its preset, the file); the ``distill`` preset below."""
    own: list[dict[str, Any]] = [read_config_file(file)] if file else [{}]
    named = own[0].pop("preset", None)
    begins_with = preset = preset or named
    if preset in (presets := registry.presets(SECTION)):
        own.insert(0, read_preset(registry, presets[preset]))
        preset = own[0].pop("preset", None)
    if preset is None:
        return begins_with, own, []
    bases = registry.presets("distill")
    if preset not in bases:
        raise UnknownComponent("compare or distill preset", preset, [*presets, *bases])
    return begins_with, own, [read_preset(registry, bases[preset])]


def _check(registry: Registry, config: CompareConfig) -> None:
    comparison = config.comparison
    if not re.fullmatch(r"[A-Za-z0-9._-]+", config.name):
        raise ConfigError(f"The comparison's name {config.name!r} names a folder: use letters, digits and . _ - alone.")
    if not comparison.objectives:
        raise ConfigError("Nothing to compare: name the objectives, e.g. --objectives meanflow,shortcut,freeflow.")
    for name in (*comparison.objectives, *comparison.settings_for):
        registry.component("objective", name)
    if unused := [name for name in comparison.settings_for if name not in comparison.objectives]:
        raise ConfigError(f"There are settings for {', '.join(unused)}, which is not among the objectives compared.")
    for settings in (config.settings, *comparison.settings_for.values()):
        objective = settings.get("objective", {})
        if not isinstance(objective, Mapping) or "name" in objective:
            raise ConfigError("A setting names another objective. Objectives are named with --objectives.")
    for objective in comparison.objectives:
        for value in config.values:
            _check_run(objective_config(registry, config, objective, value))


def _check_run(run: RunConfig) -> None:
    problems = {
        "A comparison needs a teacher. Choose one with --teacher NAME.": run.teacher is None,
        "training.stop_at_images would leave every run of the comparison unfinished. Leave it out; --budget says how "
        "long they are.": run.training.stop_at_images is not None,
        "There would be nothing to compare: set evaluation.enabled=true and name at least one evaluator, e.g. "
        "--set 'evaluation.evaluators=[energy-distance, fidelity]'.": not run.evaluation.enabled
        or run.evaluation.evaluators == (),
    }
    for problem, found in problems.items():
        if found:
            raise ConfigError(problem)


def _merged(base: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """The section's layers: plain values replace each other, single objectives' settings are laid over each other."""
    found = {key: value for key, value in layer.items() if value is not None and key != "settings_for"}
    single = dict(base.get("settings_for", {}))
    for objective, settings in layer.get("settings_for", {}).items():
        single[objective] = merge(single.get(objective, {}), settings)
    return {**base, **found, **({"settings_for": single} if single else {})}
