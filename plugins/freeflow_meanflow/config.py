"""Options of MeanFlow and improved MeanFlow. Defaults are the papers' ImageNet runs, unless they say `ours`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveFloat, model_validator

from freeflow_core.objective_kit.options import DerivativeOptions, GuidanceOptions, defaults_by


class MeanFlowOptions(GuidanceOptions, DerivativeOptions):
    """What both objectives have in common."""

    time_location: float = Field(-0.4, ge=-10, le=10, description="Mean of logit(time) of both times (paper: -0.4).")
    time_scale: PositiveFloat = Field(1.0, le=10, description="Its deviation (paper: 1.0).")
    end_location: float | None = Field(None, ge=-10, le=10)
    """Mean of logit(s), with s held below t; null: two equal draws, sorted (paper; CIFAR-10 code: -4)."""
    end_scale: PositiveFloat | None = Field(None, le=10, description="Deviation of logit(s); null: time_scale.")
    instant_share: float = Field(0.0, ge=0, lt=1)
    """Share of rows with s = t: flow matching; velocity: data: 0.75 unless given (paper)."""
    weight_power: float = Field(1.0, ge=0, le=2)
    """p of the weight 1 / (E + c)^p, E the *sum* of squares of a row (paper: 1); 0: none."""
    weight_epsilon: PositiveFloat = Field(1e-2, description="c of the same (code: 0.01; CIFAR-10 0.001).")
    label_dropout: float = Field(0.1, ge=0, le=1, description="velocity: data: share of labels dropped (paper: 0.1).")

    @model_validator(mode="after")
    def _check_common(self) -> MeanFlowOptions:
        if self.end_scale is not None and self.end_location is None:
            raise ValueError("end_scale belongs to end_location; set that too")
        return self


class MeanFlowConfig(MeanFlowOptions):
    """MeanFlow: the average velocity obeys its identity on noised data; velocity from teacher or data.

    Source: Geng et al. 2025, arXiv 2505.13447
    """

    velocity: Literal["teacher", "data"] = "teacher"
    """teacher: its guided field; data: each sample's own n - x, no teacher (paper)."""
    guidance_mixing: float = Field(0.0, ge=0, lt=1)
    """velocity: data: kappa, how much of the guided velocity is the network's own (paper: 0.5 to 0.92); g stays the
    effective weight, omega = g (1 - kappa)."""
    derivative_warmup_fraction: float = Field(0.0, ge=0, le=1)
    """Share of the run over which (t - s) du/dt rises from 0 (FastGen; paper: none)."""

    @model_validator(mode="before")
    @classmethod
    def _instants_from_data(cls, values: Any) -> Any:
        return defaults_by(values, "velocity", {"data": {"instant_share": 0.75}})

    @model_validator(mode="after")
    def _check(self) -> MeanFlowConfig:
        if self.velocity == "teacher" and self.guidance_mixing:
            raise ValueError("guidance_mixing is part of the guidance learnt from data; it needs velocity: data")
        if self.velocity == "data" and self.guided and self.label_dropout == 0:
            raise ValueError("guidance from data needs the null class: set label_dropout above 0")
        return self


class ImprovedMeanFlowConfig(MeanFlowOptions):
    """Improved MeanFlow: from data alone, with the network's own velocity as the tangent.

    Source: Geng et al. 2025, arXiv 2512.02012
    """

    instant_share: float = Field(0.5, ge=0, lt=1, description="Share of rows with s = t: flow matching (paper: 0.5).")
    guidance_distribution: Literal["log-uniform", "uniform"] = "log-uniform"
    """Distribution of g in [guidance_min, guidance_max] (paper: 8^U, U uniform)."""

    @model_validator(mode="after")
    def _check(self) -> ImprovedMeanFlowConfig:
        if self.guided and self.label_dropout == 0:
            raise ValueError("guidance from data needs the null class: set label_dropout above 0")
        if self.guidance_min <= 0:
            raise ValueError("improved MeanFlow divides by the guidance weight; guidance_min must be above 0")
        return self
