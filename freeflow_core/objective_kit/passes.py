"""How an objective asks networks: with gradient through ``wrapped``, without through ``bare``, the teacher at once."""

from __future__ import annotations

import torch
from torch import Tensor

from freeflow_core.interfaces.objective import Model
from freeflow_core.interfaces.teacher import Teacher
from freeflow_core.types import Condition


def like_states(values: Tensor, x: Tensor) -> Tensor:
    """Host ``values`` (N,) such as times, on the device and in the dtype of the states ``x``."""
    return values.to(device=x.device, dtype=x.dtype, non_blocking=True)


def velocity_with_gradient(
    model: Model, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Tensor
) -> Tensor:
    """u(x_t, t, s) (N, *D) by a gradient pass, in the states' dtype (autocast's bf16 ends here).

    Args:
        model: of an :class:`freeflow_core.interfaces.AverageVelocityStudent`.
        x_t: (N, *D) states.
        t, s: (N,) times on the host.
        condition: N conditions.
        guidance: (N,) guidance weights on the host.
    """
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
    """The teacher's field (N, *D), guided with resolved ``weight`` (N,): one call, in the states' dtype.

    Times (N,), on the host, are held within the teacher's own range.
    """
    t = like_states(t.clamp(*teacher.time_range), x_t)
    return teacher.guided_velocity(x_t, t, condition, weight).to(x_t.dtype)
