"""Options of the three objectives. Formulas and words: README.md of this plugin."""

from __future__ import annotations

import itertools
from typing import Literal

from pydantic import Field, PositiveFloat, model_validator

from freeflow_core.config import OptimizerConfig
from freeflow_core.objective_kit.options import DerivativeOptions, GuidanceRange, Interval


class GuidanceConfig(GuidanceRange):
    """Options that every objective here has."""

    weight_epsilon: PositiveFloat = 1e-2
    """Offset of the power-law weights 1 / (mean square residual + epsilon) ** power."""


class PredictionConfig(GuidanceConfig, DerivativeOptions):
    """FreeFlow's prediction alone: the student's own path follows the teacher's field.

    Source: Tong, Ma, Xie, Jaakkola: Flow Map Distillation Without Data, arXiv 2511.19428
    """

    guidance_interval: Interval = (0.0, 1.0)
    """Times (low, high) in which the teacher's field is guided in prediction."""
    weight_power: float = Field(1.0, ge=0, le=2)
    """k of the per-sample weight 1 / (mean square residual + epsilon) ** k; 0: none."""
    duration: Literal["uniform", "logit-normal"] = Field("uniform", description="Distribution of the duration d.")
    duration_location: float = Field(0.0, ge=-10, le=10, description="logit-normal durations: location of logit d.")
    duration_scale: float = Field(1.0, gt=0, le=10, description="logit-normal durations: scale of logit d.")
    duration_min: float = Field(0.0, ge=0, lt=1, description="Durations lie in (duration_min, 1].")
    endpoint_share: float = Field(0.0, ge=0, le=1, description="Expected share of prediction rows with d = 1 exactly.")
    derivative: Literal["forward-mode", "central", "one-sided"] = "central"
    """How du/dd is computed: forward-mode is exact; central costs two passes; one-sided costs one and reuses the
    gradient pass, which must not run in bf16."""
    check_derivative_every: int = Field(0, ge=0)
    """Every so many steps, log the relative error of du/dd against forward mode; 0: never."""

    @model_validator(mode="after")
    def _check_prediction(self) -> PredictionConfig:
        _check_order("guidance_interval", *self.guidance_interval, strict=False)
        return self


class CorrectionConfig(GuidanceConfig):
    """FreeFlow's correction alone: the student's samples are pulled to the teacher's distribution.

    Source: Tong, Ma, Xie, Jaakkola: Flow Map Distillation Without Data, arXiv 2511.19428
    """

    r_distribution: Literal["logit-normal", "uniform"] = "logit-normal"
    """Distribution of the noise level r on (r_low, r_high)."""
    r_location: float = Field(0.8, ge=-10, le=10, description="logit-normal r: location; above 0 favours noise.")
    r_scale: float = Field(1.0, gt=0, le=10, description="logit-normal r: scale.")
    r_low: float = Field(0.0, ge=0, lt=1, description="Least noise level.")
    r_high: float = Field(1.0, gt=0, le=1, description="Greatest noise level; results suffer when it is below 1.")
    correction_guidance_scale: float = Field(1.0, ge=0, le=10)
    """c: the corrector's teacher is guided with 1 + c (g - 1)."""
    correction_guidance_interval: Interval = (0.8, 1.0)
    """Noise levels (low, high) in which the corrector's teacher is guided."""
    correction_guidance_profile: tuple[tuple[float, float], ...] | None = Field(None, min_length=2)
    """c as a function of r: points (r, c) in rising r, joined by straight lines and constant beyond them; replaces
    scale and interval. This project's addition."""
    correction_weight_power: float = Field(0.0, ge=0, le=2)
    """Power-law weight of correction rows; this project's own addition, 0: none."""
    balance_strength: float = Field(1.0, ge=0)
    """alpha: size of the correction, in units of the prediction's gradient when adaptive."""
    correction_warmup_images: int = Field(0, ge=0)
    """Images over which the correction rises linearly from 0 while the fake velocity learns."""
    fake_velocity_optimizer: OptimizerConfig | None = None
    """The fake velocity's own, complete optimizer settings; null: those of the run."""

    @model_validator(mode="after")
    def _check_correction(self) -> CorrectionConfig:
        _check_order("correction_guidance_interval", *self.correction_guidance_interval, strict=False)
        if self.correction_guidance_profile is not None:
            levels = [r for r, _ in self.correction_guidance_profile]
            if any(a >= b for a, b in itertools.pairwise(levels)) or levels[0] < 0 or levels[-1] > 1:
                raise ValueError(f"correction_guidance_profile needs levels r that rise within [0, 1], got {levels}")
            if any(c < 0 for _, c in self.correction_guidance_profile):
                raise ValueError("correction_guidance_profile needs c >= 0 at every point")
        _check_order("(r_low, r_high)", self.r_low, self.r_high, strict=True)
        return self


class FreeFlowConfig(PredictionConfig, CorrectionConfig):
    """FreeFlow, data-free: prediction and correction on one batch.

    Source: Tong, Ma, Xie, Jaakkola: Flow Map Distillation Without Data, arXiv 2511.19428
    """

    correction_share: float = Field(0.25, gt=0, lt=1, description="Share of the batch's rows that do correction.")
    adaptive: bool = True
    """Scale the correction to the prediction's magnitude; false: lambda = balance_strength."""
    balance: Literal["raw", "weighted", "signal"] = "signal"
    """Adaptive lambda from plain residual norms, from norms with the power-law weights, or (this project's addition)
    the latter times the measured share of signal in the correction, at each noise level."""
    signal_halflife_images: PositiveFloat = 3200
    """balance: signal: half-life of the averages that the share of signal is measured from."""
    balance_epsilon: PositiveFloat = 1e-3
    """Offset of lambda's denominator, in units of root mean square velocity."""


def _check_order(name: str, low: float, high: float, *, strict: bool) -> None:
    if low > high or (strict and low == high):
        raise ValueError(
            f"{name} must have its low end {'' if strict else 'not '}"
            f"{'below' if strict else 'above'} its high end, got ({low:g}, {high:g})"
        )
