"""How well a student obeys the teacher's velocity field along its own jumps."""

from __future__ import annotations

import torch
from torch import Tensor

from freeflow_core.interfaces import AverageVelocityStudent, Teacher
from freeflow_core.math.derivative import DerivativeMethod, directional_derivative
from freeflow_core.math.flow import average_velocity_jump, expand_times, mean_square
from freeflow_core.types import Condition, Guidance


@torch.no_grad()
def derivative_residual(
    student: AverageVelocityStudent,
    teacher: Teacher,
    z: Tensor,
    condition: Condition,
    guidance: Guidance | None,
    duration: float,
    *,
    method: DerivativeMethod,
    step: float,
) -> Tensor:
    """|| u + d du/dd - v(f(z, d), 1 - d) ||^2 / dim per sample (Tong et al. 2025, the identity of the prediction loss).

    f(z, d) = z - d u(z, 1, 1 - d) is the student's jump from the prior. Zero everywhere only for a student that moves
    along the teacher's (guided) field.

    Args:
        student, teacher: the networks.
        z: (N, *D) prior draws, on the networks' device.
        condition: N conditions, there too.
        guidance: of the teacher, and the student's guidance input; None for neither.
        duration: d in (0, 1].
        method: of du/dd.
        step: of a central difference, which stays inside (0, 1].

    Returns:
        (N,), in squared state units.
    """
    if method is DerivativeMethod.CENTRAL:
        duration = min(max(duration, step), 1 - step)
    start = torch.ones(len(z)).to(z)
    durations = torch.full_like(start, duration)
    weight = None if guidance is None else guidance.weight.to(z)

    def average_velocity(d: Tensor) -> Tensor:
        s = start - d
        return student.average_velocity(student(z, start, s, condition, weight), z, start, s)

    u = average_velocity(durations)
    derivative = directional_derivative(
        average_velocity, (durations,), (torch.ones_like(durations),), method=method, step=step
    )
    time = start - durations
    end = average_velocity_jump(z, u, start, time)
    time = time.cpu().clamp(*teacher.time_range)  # weights on the host choose rows without a device sync
    teacher_weight = torch.ones_like(time) if guidance is None else guidance.at(time)
    velocity = teacher.guided_velocity(end, time, condition, teacher_weight)
    return mean_square(u + expand_times(durations, u) * derivative - velocity)
