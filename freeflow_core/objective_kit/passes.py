"""How an objective asks networks: with gradient through ``wrapped``, without through ``bare``, the teacher at once.

Times and guidance weights (N,) come as drawn, float64 on the host, and go to the states' device and dtype here. Results
are (N, *D) in the states' dtype: autocast's bf16 ends here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import BuildContext, Model, Teacher
from freeflow_core.math.derivative import AlongLine, DerivativeMethod, line_derivative
from freeflow_core.math.flow import expand_times, like_states
from freeflow_core.objective_kit.options import DerivativeOptions
from freeflow_core.types import Condition, index_condition


class Jumps(NamedTuple):
    """N jumps from t to s, as a student is asked for them.

    Args:
        x_t: (N, *D) states.
        t, s: (N,) times, s <= t, float64 on the host.
        condition: N conditions.
        guidance: (N,) guidance weights, float64 on the host.
    """

    x_t: Tensor
    t: Tensor
    s: Tensor
    condition: Condition
    guidance: Tensor

    def take(self, rows: Tensor) -> Jumps:
        """The jumps at a host index."""
        condition = index_condition(self.condition, rows)
        return Jumps(take(self.x_t, rows), self.t[rows], self.s[rows], condition, self.guidance[rows])


def velocity_with_gradient(
    model: Model, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Tensor
) -> Tensor:
    """u(x_t, t, s) by a gradient pass of an :class:`freeflow_core.interfaces.AverageVelocityStudent`."""
    t, s = like_states(t, x_t), like_states(s, x_t)
    output = model.wrapped(x_t, t, s, condition, like_states(guidance, x_t))
    velocity: Tensor = model.bare.average_velocity(output, x_t, t, s)
    return velocity.to(x_t.dtype)


@torch.no_grad()
def velocity_without_gradient(
    model: Model, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Tensor
) -> Tensor:
    """The same through ``bare``: for targets, and for derivatives, which a distributed wrapper would not survive.

    ``t`` and ``s`` may carry forward-mode tangents.
    """
    t, s = like_states(t, x_t), like_states(s, x_t)
    output = model.bare(x_t, t, s, condition, like_states(guidance, x_t))
    velocity: Tensor = model.bare.average_velocity(output, x_t, t, s)
    return velocity.to(x_t.dtype)


@torch.no_grad()
def teacher_velocity(teacher: Teacher, x_t: Tensor, t: Tensor, condition: Condition, weight: Tensor) -> Tensor:
    """The teacher's field, guided with resolved ``weight``, at times held within its own range: one call."""
    t = like_states(t.clamp(*teacher.time_range), x_t)
    return teacher.guided_velocity(x_t, t, condition, weight).to(x_t.dtype)


@torch.no_grad()
def own_velocities(
    model: Model,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    condition: Condition,
    guidance: Tensor,
    *,
    conditional: Tensor,
    unconditional: Tensor,
) -> tuple[Tensor, Tensor]:
    """u(x_t, t, s | c, g) and u(x_t, t, s | null, 1) in the given host rows, in one call: guidance learnt from data.

    Raises:
        ConfigError: unconditional rows where the student or the data has no classes.
    """
    number = len(conditional) + len(unconditional)
    chosen = asked_rows(torch.cat([conditional, unconditional]), model.is_divided)
    if not len(chosen):
        return x_t[:0], x_t[:0]
    on, weight, labels = chosen.to(x_t.device, non_blocking=True), guidance[chosen], index_condition(condition, chosen)
    if len(unconditional):
        if not isinstance(labels, Tensor) or model.bare.num_classes is None:
            raise ConfigError(
                "Guidance from data needs class labels and a student with classes, whose null class is the "
                "unconditional velocity. Leave objective.guidance_min and guidance_max at 1, or take the velocity "
                "from a teacher."
            )
        weight[len(conditional) :] = 1.0
        labels[len(conditional) :] = model.bare.num_classes
    u = velocity_without_gradient(model, x_t[on], t[chosen], s[chosen], labels, weight)
    return u[: len(conditional)], u[len(conditional) : number]


def check_derivative(method: str, context: BuildContext) -> None:
    """Raise ``ConfigError`` for a derivative that the run's precision would drown, before anything is trained."""
    if context.precision == "bf16" and method == DerivativeMethod.ONE_SIDED.value:
        raise ConfigError(
            "objective.derivative=one-sided reuses the gradient pass, which runs in bf16 here; its rounding would "
            "swamp the difference. Use objective.derivative=central or forward-mode, or runtime.precision=float32."
        )


@torch.no_grad()
def path_derivative(
    model: Model, jumps: Jumps, velocity: Tensor, *, value: Tensor, options: DerivativeOptions
) -> Tensor:
    """d/dt u(x_t, t, s) = velocity . grad_x u + du/dt (Geng et al. 2025, eq. 8), (N, *D): tangent (velocity, 1, 0).

    Args:
        model: its ``bare`` network is asked, at times within [s, 1].
        jumps: where, with s < t.
        velocity: (N, *D) the direction in x.
        value: (N, *D) u(x_t, t, s), used detached by one-sided differences.
        options: method, step and precision.
    """

    def along(offset: Tensor, rows: Tensor | None) -> Tensor:
        part, v = (jumps, velocity) if rows is None else (jumps.take(rows), take(velocity, rows))
        x_t = part.x_t + expand_times(offset, part.x_t) * v
        return velocity_without_gradient(model, *part._replace(x_t=x_t, t=part.t.to(offset) + offset))

    return _along_line(along, jumps.t - jumps.s, 1 - jumps.t, value, options, model)


@torch.no_grad()
def duration_derivative(model: Model, jumps: Jumps, *, value: Tensor, options: DerivativeOptions) -> Tensor:
    """du/dd = -du/ds in the duration d = t - s of a jump from t, at end times within [0, t].

    Arguments as for :func:`path_derivative`.
    """

    def along(offset: Tensor, rows: Tensor | None) -> Tensor:
        part = jumps if rows is None else jumps.take(rows)
        return velocity_without_gradient(model, *part._replace(s=part.s.to(offset) - offset))

    return _along_line(along, jumps.t - jumps.s, jumps.s, value, options, model)


def _along_line(
    along: AlongLine, below: Tensor, above: Tensor, value: Tensor, options: DerivativeOptions, model: Model
) -> Tensor:
    return line_derivative(
        along,
        below,
        above,
        value,
        method=DerivativeMethod(options.derivative),
        step=options.derivative_step,
        autocast=options.derivative_precision == "run",
        compiled=model.is_compiled,
    )


def asked_rows(rows: Tensor, is_divided: bool) -> Tensor:
    """The host rows to ask a network for: ``rows``, or the first of all where there are none and it is divided.

    All processes run a divided network together (:attr:`freeflow_core.interfaces.Model.is_divided`): one that left out
    a pass which another takes would keep it waiting. What comes of the row that stands in is to be dropped.
    """
    return rows if len(rows) or not is_divided else torch.zeros(1, dtype=torch.int64)


def take(values: Tensor, rows: Tensor) -> Tensor:
    """The rows of ``values``, on any device, at a host index."""
    return values[rows.to(values.device, non_blocking=True)]
