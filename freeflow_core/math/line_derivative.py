"""Derivatives along a line, such as the path of a flow or the end time of a jump, that never leave a permitted piece.

A finite difference at the end of an interval would ask a network for times it was never trained at. So each row says
how far it may go to either side, and rows near an end lean inwards, at the same order of error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from freeflow_core.math.broadcast import expand_times
from freeflow_core.math.derivative import DerivativeMethod, directional_derivative, full_precision

AlongLine: TypeAlias = Callable[[Tensor, Tensor | None], Tensor]
"""``(offset, rows) -> f``: values (n, *D) of the given host rows (None: all) at offsets (n,) along their lines."""


@dataclass(frozen=True)
class Stencil:
    """Three points a row: d f(0) = at_zero f(0) + at_first f(first) + at_second f(second), error O(step^2).

    All (N,) float64 on the host.
    """

    first: Tensor
    second: Tensor
    at_zero: Tensor
    at_first: Tensor
    at_second: Tensor

    def apply(self, zero: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """The derivative (N, *D) of values (N, *D); gradients flow through."""
        value = expand_times(self.at_first, first) * first + expand_times(self.at_second, second) * second
        return value + expand_times(self.at_zero, zero) * zero


def stencil(below: Tensor, above: Tensor, step: float) -> Stencil:
    """Central differences where there is room on both sides; elsewhere (-3 f(0) + 4 f(h) - f(2h)) / 2h inwards.

    A row with less room than 2 steps on its wider side takes half of what there is.

    Args:
        below, above: (N,) how far offsets may go down and up, at least 0, float64 on the host.
        step: h.

    Raises:
        ValueError: a row with no room on either side.
    """
    room = torch.maximum(below, above)
    if bool((room <= 0).any()):
        raise ValueError("a difference along a line needs room on one side")
    h = (room / 2).clamp(max=step)
    central = (below >= step) & (above >= step)
    inward = torch.where(above >= below, 1.0, -1.0).to(h)
    slope = torch.where(central, 1.0, inward) / (2 * h)
    return Stencil(
        first=torch.where(central, h, inward * h),
        second=torch.where(central, -h, 2 * inward * h),
        at_zero=torch.where(central, 0.0, -3 * slope),
        at_first=torch.where(central, slope, 4 * slope),
        at_second=-slope,
    )


@torch.no_grad()
def line_derivative(
    function: AlongLine,
    below: Tensor,
    above: Tensor,
    value: Tensor,
    *,
    method: DerivativeMethod,
    step: float,
) -> Tensor:
    """d f / d offset at 0, (N, *D), without gradient, in at least float32.

    Args:
        function: values along each row's line.
        below, above: (N,) room of each row, as for :func:`stencil`; forward mode needs none.
        value: (N, *D) f(0), which one-sided differences use, detached; it also says device and dtype.
        method: forward-mode: exact; central: two passes, error O(step^2) in every row; one-sided: one pass, O(step).
        step: h of the finite differences.

    Raises:
        ConfigError: one-sided differences under autocast, whose rounding would swamp the difference.
    """
    if method is DerivativeMethod.CENTRAL:
        with full_precision((value,)):
            return _central(function, stencil(below, above, step))
    ones = torch.ones(len(below), device=value.device, dtype=value.dtype)
    if method is DerivativeMethod.FORWARD_MODE:
        with full_precision((value,)):
            return directional_derivative(
                lambda offset: function(offset, None), (0 * ones,), (ones,), method=method, step=step
            )
    room = torch.maximum(below, above).clamp(max=step)
    offset = torch.where(above >= below, room, -room)
    # Every row has its own step, so the difference is taken over a step of 1 and divided afterwards.
    difference = directional_derivative(
        lambda _: function(offset, None), (0 * ones,), (ones,), method=method, step=1.0, value=value
    )
    return difference / expand_times(offset, difference)


def _central(function: AlongLine, points: Stencil) -> Tensor:
    """One call for all points; f(0) only where a row leans inwards."""
    n = len(points.first)
    every = torch.arange(n)
    edge = points.at_zero.nonzero().flatten()
    offsets = torch.cat([points.first, points.second, torch.zeros(len(edge), dtype=points.first.dtype)])
    f = function(offsets, torch.cat([every, every, edge]))
    first, second, zero = f[:n], f[n : 2 * n], f[2 * n :]
    derivative = expand_times(points.at_first, first) * first + expand_times(points.at_second, second) * second
    if edge.numel() == 0:
        return derivative
    correction = expand_times(points.at_zero[edge], zero) * zero
    return derivative.index_add(0, edge.to(derivative.device, non_blocking=True), correction)
