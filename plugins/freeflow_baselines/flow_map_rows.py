"""Rows of Lagrangian and Eulerian distillation: pairs s <= t, a share of them instants s = t."""

from __future__ import annotations

import torch
from torch import Tensor

from freeflow_baselines.config import FlowMapOptions
from freeflow_core.math.flow import logit_normal
from freeflow_core.types import Draws


def time_pairs(draws: Draws, config: FlowMapOptions) -> tuple[Tensor, Tensor]:
    """(t, s), (N,) float64 on the host, 0 < s < t < 1.

    triangle: uniform (Boffi et al. 2025, arXiv 2505.18825). duration: t - s logit-normal and s uniform in what is left
    (Sabour et al. 2025, arXiv 2506.14603). Streams ``time`` and ``end-time``.
    """
    first, second = draws.uniform("time"), draws.uniform("end-time")
    if config.times == "triangle":
        return torch.maximum(first, second), torch.minimum(first, second)
    d = logit_normal(first, config.duration_location, config.duration_scale)
    s = second * (1 - d)
    return s + d, s


def reduced(difference: Tensor, config: FlowMapOptions) -> Tensor:
    """(N,) squares: a sum over dimensions where a learned weight balances it, else a mean."""
    square = difference.square().flatten(1)
    return square.sum(1) if config.weighting == "learned" else square.mean(1)
