"""Derivatives of a student's average velocity in its times, without gradient, within the times it is trained at."""

from __future__ import annotations

import torch
from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces.build import BuildContext
from freeflow_core.interfaces.objective import Model
from freeflow_core.math.broadcast import expand_times
from freeflow_core.math.derivative import DerivativeMethod
from freeflow_core.math.line_derivative import line_derivative
from freeflow_core.objective_kit.passes import like_states, velocity_without_gradient
from freeflow_core.types import Condition, index_condition


def check_derivative(method: str, context: BuildContext) -> None:
    """Raise ``ConfigError`` for a derivative that the run's precision would drown, before anything is trained."""
    if context.precision == "bf16" and method == DerivativeMethod.ONE_SIDED.value:
        raise ConfigError(
            "objective.derivative=one-sided reuses the gradient pass, which runs in bf16 here; its rounding would "
            "swamp the difference. Use objective.derivative=central or forward-mode, or runtime.precision=float32."
        )


@torch.no_grad()
def path_derivative(
    model: Model,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    velocity: Tensor,
    condition: Condition,
    guidance: Tensor,
    *,
    value: Tensor,
    method: str,
    step: float,
) -> Tensor:
    """d/dt u(x_t, t, s) = velocity . grad_x u + du/dt (Geng et al. 2025, eq. 8), (N, *D): tangent (velocity, 1, 0).

    Args:
        model: its ``bare`` network is asked, at times within [s, 1].
        x_t: (N, *D) states.
        t, s: (N,) times with s < t, float64 on the host.
        velocity: (N, *D) the direction in x.
        condition: N conditions.
        guidance: (N,) guidance weights on the host.
        value: (N, *D) u(x_t, t, s), used detached by one-sided differences.
        method: a value of :class:`freeflow_core.math.derivative.DerivativeMethod`.
        step: of the finite differences.
    """

    def along(offset: Tensor, rows: Tensor | None) -> Tensor:
        every = (x_t, velocity, t, s, guidance)
        x, v, start, end, g = every if rows is None else (_take(part, rows) for part in every)
        offset = like_states(offset, x)
        return velocity_without_gradient(
            model,
            x + expand_times(offset, x) * v,
            like_states(start, x) + offset,
            end,
            condition if rows is None else index_condition(condition, rows),
            g,
        )

    return line_derivative(along, below=t - s, above=1 - t, value=value, method=DerivativeMethod(method), step=step)


@torch.no_grad()
def end_time_derivative(
    model: Model,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    condition: Condition,
    guidance: Tensor,
    *,
    value: Tensor,
    method: str,
    step: float,
) -> Tensor:
    """du/ds (N, *D) at end times within [0, t]; arguments as for :func:`path_derivative`."""

    def along(offset: Tensor, rows: Tensor | None) -> Tensor:
        every = (x_t, t, s, guidance)
        x, start, end, g = every if rows is None else (_take(part, rows) for part in every)
        end = like_states(end, x) + like_states(offset, x)
        return velocity_without_gradient(
            model, x, start, end, condition if rows is None else index_condition(condition, rows), g
        )

    return line_derivative(along, below=s, above=t - s, value=value, method=DerivativeMethod(method), step=step)


def _take(values: Tensor, rows: Tensor) -> Tensor:
    return values[rows.to(values.device, non_blocking=True)]
