"""Named arrangements of mixture components, as (K, dim) means."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from freeflow_toy.config import GaussianMixtureConfig


def layout_means(config: GaussianMixtureConfig) -> Tensor:
    """(K, dim) float64 means of the configured layout."""
    if config.layout == "custom":
        return torch.tensor(config.means, dtype=torch.float64)
    means = torch.zeros(config.num_components, config.dimension, dtype=torch.float64)
    if config.layout == "single":
        means[:, 0] = config.radius
    elif config.layout == "ring":
        angle = 2 * math.pi * torch.arange(config.num_modes, dtype=torch.float64) / config.num_modes
        means[:, 0], means[:, 1] = config.radius * angle.cos(), config.radius * angle.sin()
    else:
        side = math.isqrt(config.num_modes)
        line = config.radius * torch.linspace(-1, 1, side, dtype=torch.float64) if side > 1 else torch.zeros(1).double()
        means[:, 0], means[:, 1] = line.repeat(side), line.repeat_interleave(side)
    return means
