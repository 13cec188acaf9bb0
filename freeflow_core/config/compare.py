"""The configuration of a comparison: one base run, the objectives that take their turns in it, and a budget."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml
from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from freeflow_core.config.component import Section

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
    """One setting that takes several values in turn, written ``a.b=0,0.5,1`` or with its two keys."""

    setting: str = Field(min_length=1, description="Dotted name, as --set takes it.")
    values: tuple[Any, ...] = Field(min_length=2, description="The values, in the order of the plot.")

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
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
    budget: Budget | None = Field(
        None, description="images=N or forwards=N of training; null: the base run's training.images."
    )
    settings_for: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Settings of single objectives, by their names."
    )
    sweep: SweepConfig | None = Field(None, description="A setting that takes several values, each with all seeds.")
    score: str | None = Field(
        None, description="Score that is compared; null: the first distance to data, else to the teacher."
    )

    @field_validator("objectives")
    @classmethod
    def _distinct(cls, objectives: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(objectives)) < len(objectives):
            raise ValueError("an objective is named twice")
        return objectives


@dataclass(frozen=True)
class CompareConfig:
    """A comparison, checked; :func:`freeflow_core.config.load_compare.objective_config` makes its runs.

    Args:
        name: names the folder.
        comparison: objectives, seeds, budget, sweep.
        base: settings of preset and file.
        settings: settings of the command line, which are laid over every objective's own.
    """

    name: str
    comparison: ComparisonConfig
    base: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def values(self) -> Sequence[Any]:
        """The swept values; ``(None,)`` without a sweep."""
        return self.comparison.sweep.values if self.comparison.sweep else (None,)

    def to_yaml(self) -> str:
        """Everything that was asked for, as one document."""
        own = self.comparison.model_dump(mode="json") | {"budget": str(self.comparison.budget or "") or None}
        values = {"name": self.name, SECTION: own, "base": dict(self.base), "settings": dict(self.settings)}
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
