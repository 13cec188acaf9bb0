"""A velocity integrated so finely that it serves as ground truth."""

from __future__ import annotations

import torch
from torch import Tensor
from torchdiffeq import odeint

from freeflow_core.interfaces import Teacher
from freeflow_core.math.flow import expand_times, mean_square
from freeflow_core.types import Condition, Guidance

_RELATIVE_TOLERANCE = 1e-11
_ABSOLUTE_TOLERANCE = 1e-12


@torch.no_grad()
def integrate_velocity(
    teacher: Teacher, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Guidance | None
) -> Tensor:
    """X(x_t, t, s) (N, *D) for times ``t``, ``s`` (N,), by dopri8 in float64; each sample meets the tolerance itself.

    Guidance jumps at its interval's ends, so the path is cut there and each piece is smooth: for every sample, piece
    [low, high] is run over an internal time from 0 to 1, in which samples with nothing to do rest.
    """
    x = x_t.double()
    t, s = t.detach().cpu().double(), s.detach().cpu().double()
    ones = torch.ones_like(t)
    weight = ones if guidance is None else guidance.weight.detach().cpu().double()
    low, high = (0.0, 1.0) if guidance is None else (guidance.low, guidance.high)
    for bottom, top, weight_here in ((high, 1.0, ones), (low, high, weight), (0.0, low, ones)):
        start, end = t.clamp(bottom, top), s.clamp(bottom, top)
        if bottom < top and bool((start != end).any()):
            x = _integrate_piece(teacher, x, start, end, condition, weight_here)
    return x.to(x_t.dtype)


def _integrate_piece(
    teacher: Teacher, x: Tensor, start: Tensor, end: Tensor, condition: Condition, weight: Tensor
) -> Tensor:
    rate = expand_times(end - start, x)

    def slope(progress: Tensor, state: Tensor) -> Tensor:
        time = start + progress.cpu() * (end - start)
        return rate * teacher.guided_velocity(state, time, condition, weight)

    span = torch.tensor([0.0, 1.0], dtype=torch.float64, device=x.device)
    path = odeint(
        slope,
        x,
        span,
        rtol=_RELATIVE_TOLERANCE,
        atol=_ABSOLUTE_TOLERANCE,
        method="dopri8",
        # Without step_t the end point would be interpolated, at a lower order; and the default norm averages over
        # the batch, so that one hard sample could hide among many easy ones.
        options={"norm": _worst_sample, "step_t": span[1:]},
    )
    return path[-1]


def _worst_sample(error: Tensor) -> Tensor:
    return mean_square(error).max().sqrt()
