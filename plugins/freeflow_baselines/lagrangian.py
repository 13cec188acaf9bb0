"""Lagrangian distillation: the end point, as the end time moves on, must follow the velocity there."""

from __future__ import annotations

import math
from typing import Self, final

import torch
from torch import Tensor

from freeflow_baselines.config import LagrangianConfig
from freeflow_baselines.flow_map_rows import reduced, time_pairs
from freeflow_baselines.rows import PathRows, draw_guidance, guided_field, noised_rows, root_mean_square
from freeflow_baselines.time_weight import TIME_WEIGHT, time_weight_role, weighted_losses
from freeflow_core.config import ComponentConfig
from freeflow_core.interfaces import (
    AverageVelocityStudent,
    BuildContext,
    Context,
    Model,
    Models,
    Objective,
    Role,
    StartTimes,
    Student,
    Teacher,
)
from freeflow_core.math.derivative import full_precision, stencil
from freeflow_core.math.flow import average_velocity_jump, expand_times
from freeflow_core.objective_kit.passes import (
    check_derivative,
    duration_derivative,
    velocity_with_gradient,
    velocity_without_gradient,
)
from freeflow_core.types import Batch, Draws, Loss, Progress, concatenate_conditions, index_condition


@final
class Lagrangian(Objective):
    """min E || dX(x_t, t, s)/ds - v(X(x_t, t, s), s) ||^2, with s = t rows || u(x_t, t, t) - v(x_t, t) ||^2.

    Lagrangian map distillation (Boffi et al. 2024, arXiv 2406.07507, eq. 3.6) and self-distillation (Boffi et al.
    2025, arXiv 2505.18825, LSD), with dX/ds = u - (t - s) du/ds. No gradient flows into X or the velocity, as in LSD;
    ``gradient`` says whether it flows through du/ds. velocity: data is self-distillation: instants regress on n - x,
    and the velocity at X is the student's own u(X, s, s). start: prior is data-free and trains jumps from t = 1 alone.

    Fixed point: the exact map. Cost with the share m = 1 - ``instant_share`` of moving rows: gradient: derivative
    (1 + 2m)(F + B) + T; target F + B + mJ + T. Known failure: over-smooth samples at large scale.

    Random streams: ``time``, ``end-time``, ``noise`` (or ``prior``), ``guidance``.
    """

    requires = AverageVelocityStudent

    def __init__(self, config: LagrangianConfig) -> None:
        self._config = config
        self._from_prior = config.start == "prior"
        self.needs_data = not self._from_prior
        self.needs_teacher = config.velocity == "teacher"
        self.start_times = StartTimes.PRIOR if self._from_prior else StartTimes.ANY

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        assert isinstance(config, LagrangianConfig)
        check_derivative(config.derivative, context)
        return cls(config)

    def roles(self, student: Student, teacher: Teacher | None) -> dict[str, Role]:
        """The learned weight of each pair of times."""
        if self._config.weighting == "none":
            return {}
        return {TIME_WEIGHT: time_weight_role(math.log(math.prod(student.sample_shape)))}

    def losses(
        self, models: Models, batch: Batch, draws: Draws, progress: Progress, context: Context
    ) -> dict[str, Loss]:
        student = models["student"]
        rows, s, moving = self._rows(models, batch, draws)
        u, du_ds = self._derivative(student, rows, s, moving)
        x_s = average_velocity_jump(rows.x_t, u.detach(), rows.t, s)
        on = moving.to(u.device, non_blocking=True)
        length = expand_times((rows.t - s)[moving], du_ds)
        along = u.index_add(0, on, -length * du_ds)  # dX/ds; at instants it is u itself
        difference = along - self._velocity(models, rows, x_s, s, moving)
        weighted, extra = weighted_losses(models, reduced(difference, self._config), rows.t, s)
        terms = {"lagrangian_residual": root_mean_square(difference)}
        return {"student": Loss(weighted, terms), **extra}

    def _rows(self, models: Models, batch: Batch, draws: Draws) -> tuple[PathRows, Tensor, Tensor]:
        """Rows, end times (N,), and the host index of those with s < t."""
        config = self._config
        if self._from_prior:
            z = draws.noise("prior", models.teacher.sample_shape)
            t, s = torch.ones(len(z), dtype=torch.float64), draws.uniform("end-time")
            condition = models.teacher.sample_condition(draws) if batch.condition is None else batch.condition
            rows = PathRows(z, z, z, t, torch.zeros_like(z), condition, draw_guidance(draws, config))
            return rows, s, torch.arange(len(z))
        t, s = time_pairs(draws, config)
        moving, instant = draws.split(config.instant_share)
        s = s.index_copy(0, instant, t[instant])
        return noised_rows(models, batch, draws, t, config), s, moving

    def _derivative(self, student: Model, rows: PathRows, s: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
        """u (N, *D) with gradient, and du/ds of the moving rows, with gradient where the option says so."""
        config = self._config
        part, end = rows.take(moving), s[moving]
        if config.gradient == "target":
            u = velocity_with_gradient(student, rows.x_t, rows.t, s, rows.condition, rows.guidance)
            chosen = u[moving.to(u.device, non_blocking=True)]
            return u, -duration_derivative(
                student,
                part.x_t,
                part.t,
                end,
                part.condition,
                part.guidance,
                value=chosen,
                method=config.derivative,
                step=config.derivative_step,
            )
        # One gradient pass over all rows and two further points of each moving row: differences carry the gradient,
        # through the wrapped network alone. In bf16 they would be rounding, so this pass runs in full precision.
        points = stencil(below=end, above=part.t - end, step=config.derivative_step)
        twice = torch.cat([moving, moving])
        with full_precision(rows.x_t):
            values = velocity_with_gradient(
                student,
                torch.cat([rows.x_t, part.x_t, part.x_t]),
                torch.cat([rows.t, part.t, part.t]),
                torch.cat([s, end + points.first, end + points.second]),
                concatenate_conditions(rows.condition, index_condition(rows.condition, twice)),
                torch.cat([rows.guidance, part.guidance, part.guidance]),
            )
        u, first, second = torch.split(values, [len(s), len(moving), len(moving)])
        return u, points.apply(u[moving.to(u.device, non_blocking=True)], first, second)

    @torch.no_grad()
    def _velocity(self, models: Models, rows: PathRows, x_s: Tensor, s: Tensor, moving: Tensor) -> Tensor:
        """v(X, s) (N, *D); at instants X is x_t itself, so one call asks for all."""
        if self._config.velocity == "teacher":
            return guided_field(models, x_s, s, rows.condition, rows.guidance, self._config)
        on, end = moving.to(x_s.device, non_blocking=True), s[moving]
        condition = index_condition(rows.condition, moving)
        own = velocity_without_gradient(models["student"], x_s[on], end, end, condition, rows.guidance[moving])
        return rows.velocity.index_copy(0, on, own)
