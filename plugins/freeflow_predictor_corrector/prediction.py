"""The prediction: the student's own path from the prior must follow the teacher's field."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from freeflow_core.math.flow import expand_times, logit_normal, mean_square, uniform_between
from freeflow_predictor_corrector.config import PredictionConfig


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


@final
@dataclass(frozen=True)
class Prediction:
    """Losses of P rows.

    Args:
        per_sample: (P,) with gradient.
        norm: (P,) root mean square over dimensions of the residual Delta_G, detached.
        weight: (P,) power-law weights, detached.
    """

    per_sample: Tensor
    norm: Tensor
    weight: Tensor


def predict(u: Tensor, du_dd: Tensor, v: Tensor, d: Tensor, *, power: float, epsilon: float) -> Prediction:
    """1/2 w ||u - sg(v - d du/dd)||^2 / dim, whose gradient is w Delta_G / dim times du/dtheta.

    Delta_G = u + d du/dd - v(f, 1 - d) is the residual of the identity that the exact map fulfils
    (Tong et al. 2025, prediction objective, with t = 1 the noise), and w = 1 / (||Delta_G||^2 / dim + epsilon)^power.
    Squares are *means* over the ``dim`` dimensions of a state throughout.

    Args:
        u: (P, *D) average velocities with gradient.
        du_dd: (P, *D) their derivative in the duration.
        v: (P, *D) the teacher's velocities at the student's states f.
        d: (P,) durations.
    """
    with torch.no_grad():
        target = v - expand_times(d, u) * du_dd
    square = mean_square(u - target)
    weight = (square.detach() + epsilon).pow(-power)
    return Prediction(0.5 * weight * square, square.detach().sqrt(), weight)
