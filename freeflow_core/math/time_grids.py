"""Grids that samplers step along, float64 on the host, falling from 1 to 0."""

from __future__ import annotations

import torch
from torch import Tensor


def uniform_grid(num_steps: int, start: float = 1.0, end: float = 0.0) -> Tensor:
    """(num_steps + 1,) equally spaced times. Raises ``ValueError`` unless num_steps >= 1 and start > end."""
    if num_steps < 1 or not start > end:
        raise ValueError(f"a grid needs num_steps >= 1 and start > end, got {num_steps}, {start}, {end}")
    return torch.linspace(start, end, num_steps + 1, dtype=torch.float64)


def jump_grid(jump_to: float, num_steps: int) -> Tensor:
    """1, then ``jump_to``, then ``num_steps`` equal steps to 0: for a student jump followed by the teacher."""
    return torch.cat([torch.ones(1, dtype=torch.float64), uniform_grid(num_steps, start=jump_to)])
