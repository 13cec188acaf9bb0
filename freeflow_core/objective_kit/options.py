"""Options that objectives have in common, so that they are compared on equal terms. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from freeflow_core.config import ComponentConfig

UnitTime = Annotated[float, Field(ge=0, le=1)]
Interval = tuple[UnitTime, UnitTime]


class GuidanceRange(ComponentConfig):
    """Guidance weights that are trained; the student takes them as an input."""

    guidance_min: float = Field(1.0, ge=0, le=100)
    """Least guidance weight g; each example draws its own, uniform in [min, max]."""
    guidance_max: float = Field(1.0, ge=0, le=100)
    """Greatest guidance weight; equal to guidance_min for a fixed one, 1: unguided."""

    @model_validator(mode="after")
    def _check_range(self) -> GuidanceRange:
        if self.guidance_min > self.guidance_max:
            raise ValueError(f"guidance_min={self.guidance_min:g} exceeds guidance_max={self.guidance_max:g}")
        return self

    @property
    def guided(self) -> bool:
        return (self.guidance_min, self.guidance_max) != (1.0, 1.0)


class GuidanceOptions(GuidanceRange):
    """Guidance of the teacher."""

    guidance_interval: Interval = (0.0, 1.0)
    """Times (low, high) in which the teacher's field is guided; unguided outside."""

    @model_validator(mode="after")
    def _check_interval(self) -> GuidanceOptions:
        if self.guidance_interval[0] > self.guidance_interval[1]:
            raise ValueError(f"guidance_interval must rise, got {list(self.guidance_interval)}")
        return self


class DerivativeOptions(ComponentConfig):
    """How the network is differentiated."""

    derivative: Literal["forward-mode", "central", "one-sided"] = "forward-mode"
    """forward-mode: exact, math attention; central: two passes, fused attention; one-sided: one pass, reuses the
    gradient pass, which must not run in bf16."""
    derivative_step: float = Field(5e-3, ge=1e-6, le=0.1, description="Step in time of the differences.")
    derivative_precision: Literal["float32", "run"] = "float32"
    """forward-mode in a bf16 run: float32: outside autocast; run: in bf16, less exact. Differences: always float32."""


def defaults_by(values: Any, field: str, defaults: Mapping[str, Mapping[str, Any]]) -> Any:
    """Raw ``values`` of a configuration, laid over the defaults that belong to what ``field`` has there."""
    chosen = values.get(field) if isinstance(values, dict) else None
    return {**defaults[chosen], **values} if isinstance(chosen, str) and chosen in defaults else values
