"""Faithfulness to the teacher: sample by sample, and along the student's own jumps."""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from freeflow_core.interfaces import AverageVelocityStudent, EvaluationBatch, EvaluationContext, Evaluator, Teacher
from freeflow_core.math.derivative import DerivativeMethod, directional_derivative
from freeflow_core.math.flow import average_velocity_jump, expand_times, mean_square
from freeflow_core.types import Condition, Guidance, index_condition
from freeflow_metrics.config import FidelityConfig
from freeflow_metrics.distance import REFERENCE_SUBJECT

STUDENT_SUBJECT = "student"
"""The one-step student's row."""


@final
class FidelityEvaluator(Evaluator):
    """``fidelity_mse`` and, for the one-step student, ``derivative_residual``.

    ``fidelity_mse`` is the mean squared error of a sample's state to the many-step teacher's from the same noise and
    condition, per dimension. ``derivative_residual`` is that of :func:`derivative_residual`, averaged over durations
    and samples; it needs an average-velocity student and the teacher.
    """

    paired = True

    def __init__(self, config: FidelityConfig) -> None:
        self._config = config
        self._student: AverageVelocityStudent | None = None
        self._teacher: Teacher | None = None
        self._device = torch.device("cpu")
        self._subject = ""
        self._values: dict[str, list[Tensor]] = {}

    def prepare(self, context: EvaluationContext) -> None:
        self._device = context.device
        self._teacher = context.teacher
        self._student = context.student if isinstance(context.student, AverageVelocityStudent) else None

    def reset(self, subject: str) -> None:
        self._subject = subject
        self._values = {"fidelity_mse": [], "derivative_residual": []}

    def update(self, batch: EvaluationBatch) -> None:
        if batch.x is not None and batch.reference_x is not None and self._subject != REFERENCE_SUBJECT:
            error = batch.x.detach().cpu().double() - batch.reference_x.cpu().double()
            self._values["fidelity_mse"].append(mean_square(error))
        if self._subject != STUDENT_SUBJECT or batch.z is None or self._student is None or self._teacher is None:
            return
        seen = sum(map(len, self._values["derivative_residual"])) // len(self._config.durations)
        z = batch.z[: max(0, self._config.derivative_samples - seen)]
        if not len(z):
            return
        rows = torch.arange(len(z))
        condition = index_condition(batch.condition, rows)
        if isinstance(condition, dict):
            condition = {key: value.to(self._device) for key, value in condition.items()}
        elif condition is not None:
            condition = condition.to(self._device)
        for duration in self._config.durations:
            residual = derivative_residual(
                self._student,
                self._teacher,
                z.to(self._device),
                condition,
                None if batch.guidance is None else batch.guidance.rows(rows),
                duration,
                method=DerivativeMethod(self._config.derivative),
                step=self._config.derivative_step,
            )
            self._values["derivative_residual"].append(residual.cpu().double())

    def compute(self) -> Mapping[str, float]:
        return {
            name: sum(float(part.sum()) for part in parts) / sum(map(len, parts))
            for name, parts in self._values.items()
            if parts
        }


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

    ``z`` (N, *D) and the conditions are on the networks' device; ``guidance`` is the teacher's, and the student's
    input; ``duration`` d lies in (0, 1], and so does a central difference of ``step``.
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
    time = time.clamp(*teacher.time_range)
    host = time.cpu()  # weights on the host choose rows without a device sync
    teacher_weight = torch.ones_like(host) if guidance is None else guidance.at(host)
    velocity = teacher.guided_velocity(end, time, condition, teacher_weight)
    return mean_square(u + expand_times(durations, u) * derivative - velocity)
