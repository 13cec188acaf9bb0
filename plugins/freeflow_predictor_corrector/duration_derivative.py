"""du/dd: the partial derivative of the student's average velocity in the duration d = 1 - s, at t = 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from freeflow_core.math.derivative import DerivativeMethod, directional_derivative, full_precision
from freeflow_core.math.flow import expand_times
from freeflow_predictor_corrector.rows import on

AverageVelocityAt: TypeAlias = Callable[[Tensor, Tensor | None], Tensor]
"""``(s, rows) -> u``: u of the given host rows (None: all) at end times ``s``, one per row."""


@torch.no_grad()
def duration_derivative(
    function: AverageVelocityAt, d: Tensor, s: Tensor, *, method: DerivativeMethod, step: float, value: Tensor
) -> Tensor:
    """du/dd (N, *D). No end time outside [0, 1] is ever asked for: finite differences lean inwards at the ends.

    Args:
        function: the student.
        d: (N,) durations in (0, 1], on the host.
        s: (N,) the same as end times 1 - d, as the network takes them.
        method: forward mode (exact); central (error O(h^2) at every row, two passes); one-sided (O(h), one pass).
        step: h of the finite differences, at most 1/4.
        value: u at ``s``, for one-sided differences; used detached.

    Raises:
        ConfigError: one-sided differences under autocast.
    """
    if method is DerivativeMethod.CENTRAL:
        return _central(function, d, s, step)
    # One-sided differences go backward in d, towards shorter and easier jumps, wherever there is room.
    sign = on(s, torch.where(d > step, -1.0, 1.0))
    along = directional_derivative(lambda s: function(s, None), (s,), (-sign,), method=method, step=step, value=value)
    return along * expand_times(sign, along)


def _central(function: AverageVelocityAt, d: Tensor, s: Tensor, h: float) -> Tensor:
    """(u(d+h) - u(d-h)) / 2h; within h of an end +-(-3 u(d) + 4 u(d +- h) - u(d +- 2h)) / 2h: one call for all."""
    inward = torch.where(d < 0.5, 1.0, -1.0).to(d)
    at_edge = (d < h) | (d > 1 - h)
    edge = at_edge.nonzero().flatten()
    first = torch.where(at_edge, d + inward * h, d + h)
    second = torch.where(at_edge, d + 2 * inward * h, d - h)
    every = torch.arange(d.shape[0])
    points = 1 - torch.cat([first, second, d[edge]])
    with full_precision(s):
        u = function(on(s, points), torch.cat([every, every, edge]))
    n = d.shape[0]
    u1, u2, u0 = u[:n], u[n : 2 * n], u[2 * n :]
    derivative = (u1 - u2) / (2 * h)
    if edge.numel() == 0:
        return derivative
    rows = edge.to(u.device, non_blocking=True)
    scale = expand_times(inward[edge] / (2 * h), u0)
    return derivative.index_copy(0, rows, scale * (4 * u1[rows] - 3 * u0 - u2[rows]))


@torch.no_grad()
def relative_error(derivative: Tensor, exact: Tensor) -> Tensor:
    """||derivative - exact|| / ||exact||, 0-d, on the device."""
    return (derivative - exact).norm() / exact.norm().clamp_min(torch.finfo(exact.dtype).tiny)
