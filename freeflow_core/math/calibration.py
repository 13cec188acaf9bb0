"""Is a field the velocity of the path that starts at its own samples? No data are needed to tell.

v(x_t, t) = E[dx_t/dt | x_t] minimises E|dx_t/dt - v|^2 (Lipman et al. 2022, arXiv 2210.02747, theorem 2), so with x
drawn by integrating v itself, the residual dx_t/dt - v is uncorrelated with every function of x_t. A field whose time,
sign, scale or meaning is read wrongly makes other samples, and their residuals can be predicted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

Field = Callable[[Tensor, Tensor], Tensor]
"""``field(x_t (N, *D), t (N,) float64) -> v (N, *D)``."""


def integrate(field: Field, z: Tensor, num_steps: int) -> list[Tensor]:
    """States (N, *D) at the times 1, 1 - 1/K, ..., 0, from ``z``, by the midpoint rule: it never asks at t = 0."""
    times = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64).tolist()
    states = [z]
    for t, s in itertools.pairwise(times):
        x = states[-1]
        middle = x + (s - t) / 2 * field(x, _times(t, x))
        states.append(x + (s - t) * field(middle, _times((t + s) / 2, x)))
    return states


def miscalibration(v: Tensor, x_t: Tensor, target: Tensor) -> float:
    """How much of the residual ``target`` - v a linear function of v and x_t predicts, per number; 0 when exact.

    Chance adds up to about 1 / (N dimensions) of the residual's variance. Infinite when v is not finite. In the units
    of the noise, whose variance is 1: relative to the target it would be small for every field that runs away.

    Args:
        v: (N, *D) what the field says at x_t, N >= 2.
        x_t: (N, *D) states of the path at one time.
        target: (N, *D) dx_t/dt along it: n - x on the linear path.
    """
    v, x_t = v.flatten(1).double(), x_t.flatten(1).double()
    residual = target.flatten(1).double() - v
    if not bool(torch.isfinite(residual).all()):
        return float("inf")
    num, dimensions = residual.shape
    # |mean|^2 without its bias: the mean over pairs of different rows.
    pairs = residual.sum(0).square().sum() - residual.square().sum()
    mean = (pairs / (num * (num - 1) * dimensions)).clamp_min(0)
    columns = torch.stack([(part - part.mean(0)).flatten() for part in (v, x_t)], 1)
    centred = (residual - residual.mean(0)).flatten()
    gram = columns.T @ columns
    gram = gram + gram.diagonal().mean() * 1e-9 * torch.eye(2, dtype=gram.dtype, device=gram.device)
    slopes = torch.linalg.solve(gram, columns.T @ centred)
    predicted = centred.square().mean() - (centred - columns @ slopes).square().mean()
    return float(predicted + mean)


def posterior_means(v: Tensor, x_t: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """Estimates of data x_t - t v and noise x_t + (1 - t) v (N, *D), on the linear path."""
    return x_t - t * v, x_t + (1 - t) * v


def _times(t: float, like: Tensor) -> Tensor:
    return torch.full((len(like),), t, dtype=torch.float64)
