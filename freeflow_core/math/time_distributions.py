"""Distributions of times on (0, 1), as maps from uniform draws, so that a draw is a function of its index."""

from __future__ import annotations

import torch
from torch import Tensor


def logit_normal(uniform: Tensor, location: float, scale: float) -> Tensor:
    """sigmoid(location + scale * N(0, 1)); location > 0 favours t near 1, the noise. ``uniform`` (N,) float64."""
    return torch.sigmoid(location + scale * torch.special.ndtri(uniform))


def uniform_between(uniform: Tensor, low: float, high: float) -> Tensor:
    """Uniform on (low, high]: the open end is at ``low``, so that (0, 1] never yields 0."""
    return high - (high - low) * uniform
