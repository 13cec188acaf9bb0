"""One training step: one gradient pass, one derivative of the rows with s < t, one question for the velocity."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from freeflow_core.interfaces import (
    AverageVelocityStudent,
    Context,
    Model,
    Models,
    Objective,
    Role,
    StartTimes,
    Student,
    Teacher,
)
from freeflow_core.math.flow import expand_times
from freeflow_core.objective_kit.passes import path_derivative, velocity_with_gradient
from freeflow_core.types import Batch, Draws, Loss, Progress, index_condition
from freeflow_meanflow.config import MeanFlowOptions
from freeflow_meanflow.rows import Rows, draw_rows


@final
@dataclass(frozen=True)
class Field:
    """What the average velocity is made to follow, without gradient.

    Args:
        velocity: (N, *D) v of the identity.
        tangent: (M, *D) direction dx_t/dt of the derivative, in the M rows with s < t.
    """

    velocity: Tensor
    tangent: Tensor


class MeanFlowStep(Objective):
    """The MeanFlow identity u + (t - s) du/dt = v as a regression (Geng et al. 2025, arXiv 2505.13447, eqs. 6 to 10).

    du/dt is the total derivative along the tangent, u's target is detached, and rows with s = t are flow matching.
    The loss of a row is E / sg(E + c)^p with E the sum of squares over dimensions (section 4.3, eq. 22).
    """

    needs_data = True
    requires = AverageVelocityStudent
    start_times = StartTimes.ANY

    def __init__(self, options: MeanFlowOptions) -> None:
        self._options = options

    @abstractmethod
    def draw_guidance(self, draws: Draws) -> Tensor:
        """One weight g a row, (N,) float64 on the host."""

    @abstractmethod
    def dropout(self) -> float:
        """Share of labels replaced by the null class."""

    @abstractmethod
    def field(self, models: Models, rows: Rows) -> Field:
        """The velocity to follow, and the tangent."""

    def warmup(self, progress: Progress) -> float:
        """Factor of (t - s) du/dt, in [0, 1]."""
        return 1.0

    @final
    def roles(self, student: Student, teacher: Teacher | None) -> dict[str, Role]:
        return {}

    @final
    def losses(
        self, models: Models, batch: Batch, draws: Draws, progress: Progress, context: Context
    ) -> dict[str, Loss]:
        student = models["student"]
        rows = draw_rows(models, batch, draws, self._options, self.draw_guidance(draws), self.dropout())
        found = self.field(models, rows)
        u = velocity_with_gradient(student, rows.x_t, rows.t, rows.s, rows.condition, rows.guidance)
        with torch.no_grad():
            along = self._derivative(student, rows, found.tangent, u) * self.warmup(progress)
            on = rows.moving.to(u.device, non_blocking=True)
            length = expand_times((rows.t - rows.s)[rows.moving], along)
            target = found.velocity.index_add(0, on, -length * along)
        square = (u - target).square().flatten(1).sum(1)
        weight = (square.detach() + self._options.weight_epsilon).pow(-self._options.weight_power)
        mean = square.detach() / u[0].numel()
        terms = {
            "residual": mean.mean().sqrt(),
            "moving_residual": mean[on].mean().sqrt() if len(on) else mean.new_zeros(()),
            "weight_mean": weight.mean(),
        }
        return {"student": Loss(weight * square, terms)}

    def _derivative(self, student: Model, rows: Rows, tangent: Tensor, u: Tensor) -> Tensor:
        """du/dt (M, *D) of the rows with s < t; the others do not need it, since t - s = 0 there."""
        moving = rows.moving
        if not len(moving):
            return tangent
        on = moving.to(u.device, non_blocking=True)
        return path_derivative(
            student,
            rows.x_t[on],
            rows.t[moving],
            rows.s[moving],
            tangent,
            index_condition(rows.condition, moving),
            rows.guidance[moving],
            value=u[on],
            method=self._options.derivative,
            step=self._options.derivative_step,
        )
