"""Time grids and their validation."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import StartTimes, Student
from freeflow_core.math.flow import uniform_grid


def shifted_grid(num_steps: int, shift: float) -> Tensor:
    """(num_steps + 1,) times from 1 to 0, t' = shift t / (1 + (shift - 1) t) of the uniform ones.

    From Esser et al. 2024, arXiv 2403.03206, eq. 23. Raises ``ValueError`` unless num_steps >= 1.
    """
    t = uniform_grid(num_steps)
    return shift * t / (1 + (shift - 1) * t)


def grid_times(grid: Tensor) -> list[float]:
    """The grid as numbers.

    Raises:
        ConfigError: unless it is (K+1,) with K >= 1, float64, finite, strictly falling and within [0, 1].
    """
    if grid.ndim != 1 or len(grid) < 2 or grid.dtype is not torch.float64:
        raise ConfigError(
            f"A time grid must be a float64 tensor of shape (steps + 1,) with at least one step, got {grid.dtype} "
            f"{tuple(grid.shape)}. freeflow_core.math.flow makes such grids."
        )
    times: list[float] = grid.tolist()
    if not (times[0] <= 1 and times[-1] >= 0 and all(a > b for a, b in itertools.pairwise(times))):
        raise ConfigError(
            f"A time grid must fall strictly from at most 1 (noise) to at least 0 (data), got {times}. Time runs from "
            "noise to data when sampling."
        )
    return times


def check_start(student: Student, start: float) -> None:
    """Raise :class:`ConfigError` when a student that learnt to jump from noise alone is to start elsewhere."""
    if student.start_times is StartTimes.PRIOR and start != 1:
        raise ConfigError(
            f"This student was trained from the prior alone, so it can jump from t = 1 only, but the grid starts at "
            f"t = {start:g}. Start the grid at 1, or sample from there with the teacher (sampler euler or heun)."
        )
