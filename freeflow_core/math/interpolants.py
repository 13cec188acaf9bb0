"""The linear path, and the flow map's jump: t = 0 data, t = 1 noise."""

from __future__ import annotations

from torch import Tensor

from freeflow_core.math.broadcast import expand_times


def linear_interpolate(x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) x + t n for ``x`` and ``noise`` (N, *D), ``t`` (N,)."""
    t = expand_times(t, x)
    return (1 - t) * x + t * noise


def linear_velocity(x: Tensor, noise: Tensor) -> Tensor:
    """v = dx_t/dt = n - x."""
    return noise - x


def average_velocity_jump(x_t: Tensor, u: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """x_s = x_t - (t - s) u (Geng et al. 2025, eq. 3), for ``x_t`` and ``u`` (N, *D), ``t`` and ``s`` (N,)."""
    return x_t - expand_times(t - s, x_t) * u
