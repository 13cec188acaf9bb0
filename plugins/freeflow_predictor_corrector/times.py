"""Durations and noise levels, as maps from uniform draws on the host."""

from __future__ import annotations

from torch import Tensor

from freeflow_core.math.flow import logit_normal, uniform_between
from freeflow_predictor_corrector.config import CorrectionConfig, PredictionConfig


def durations(uniform: Tensor, config: PredictionConfig) -> Tensor:
    """Durations d = 1 - s in (duration_min, 1], (N,) float64, from ``uniform`` (N,) in (0, 1).

    The inverse distribution function of a mixture: the first ``endpoint_share`` of the unit interval gives d = 1
    exactly, the rest is stretched back to (0, 1).
    """
    at_end = uniform <= config.endpoint_share
    rest = (uniform - config.endpoint_share) / max(1 - config.endpoint_share, 2.0**-53)
    rest = rest.masked_fill(at_end, 0.5).clamp(2.0**-54, 1 - 2.0**-53)
    if config.duration == "uniform":
        d = uniform_between(rest, config.duration_min, 1.0)
    else:
        d = logit_normal(rest, config.duration_location, config.duration_scale)
        d = config.duration_min + (1 - config.duration_min) * d
    return d.masked_fill(at_end, 1.0)


def noise_levels(uniform: Tensor, config: CorrectionConfig) -> Tensor:
    """Noise levels r in (r_low, r_high], (N,) float64, from ``uniform`` (N,) in (0, 1)."""
    if config.r_distribution == "uniform":
        return uniform_between(uniform, config.r_low, config.r_high)
    unit = logit_normal(uniform, config.r_location, config.r_scale)
    return config.r_low + (config.r_high - config.r_low) * unit
