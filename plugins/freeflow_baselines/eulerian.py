"""Eulerian distillation: the end point must not move when the start slides along its trajectory."""

from __future__ import annotations

import math
from typing import Self, final

import torch
from torch import Tensor

from freeflow_baselines.config import EulerianConfig
from freeflow_baselines.flow_map_rows import reduced, time_pairs
from freeflow_baselines.rows import PathRows, noised_rows, path_velocity, root_mean_square
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
from freeflow_core.math.flow import expand_times
from freeflow_core.objective_kit.passes import check_derivative, path_derivative, velocity_with_gradient
from freeflow_core.types import Batch, Draws, Loss, Progress, concatenate_conditions, index_condition


@final
class Eulerian(Objective):
    """min E || dX(x_t, t, s)/dt + v . grad_x X ||^2, whose residual is v - u - (t - s) du/dt, du/dt a total derivative.

    Eulerian map distillation (Boffi et al. 2024, arXiv 2406.07507, eq. 3.9; 2025, arXiv 2505.18825). ``gradient``
    says where the gradient flows: through everything (EMD), through d/dt alone (ESD), or through u alone, with the
    derivative part of the target: AYF-EMD (Sabour et al. 2025, arXiv 2506.14603), whose tangent normalisation and
    warm-up are options; its autoguidance is not, since a weak teacher is no part of a run.

    Fixed point: the exact map, as MeanFlow's; with velocity: data in the mean over data, not sample by sample.
    Cost with the share m = 1 - ``instant_share`` of moving rows: T + F + B + mJ for target, T + (1 + 2m)(F + B) for
    full, and mJ more for time. Known failure: full is unstable.

    Random streams: ``time``, ``end-time``, ``noise``, ``guidance``.
    """

    needs_data = True
    requires = AverageVelocityStudent
    start_times = StartTimes.ANY

    def __init__(self, config: EulerianConfig) -> None:
        self._config = config
        self.needs_teacher = config.velocity == "teacher"

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        assert isinstance(config, EulerianConfig)
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
        config, student = self._config, models["student"]
        t, s = time_pairs(draws, config)
        moving, instant = draws.split(config.instant_share)
        s = s.index_copy(0, instant, t[instant])
        rows = noised_rows(models, batch, draws, t, config)
        v = path_velocity(models, rows, config)
        if config.gradient == "target":
            u = velocity_with_gradient(student, rows.x_t, t, s, rows.condition, rows.guidance)
            du_dt = self._without_gradient(student, rows, s, v, u, moving)
        else:
            u, du_dt = self._with_gradient(student, rows, s, v, moving)
        length = expand_times((t - s)[moving], du_dt) * self._warmup(progress)
        tangent = (v - u).index_add(0, moving.to(u.device, non_blocking=True), -length * du_dt)
        difference = tangent
        if config.gradient == "target":
            difference = self._step(tangent.detach(), moving) + u.detach() - u
        weighted, extra = weighted_losses(models, reduced(difference, config), t, s)
        return {"student": Loss(weighted, {"eulerian_residual": root_mean_square(tangent)}), **extra}

    def _warmup(self, progress: Progress) -> float:
        """r, rising from 0 to ``tangent_warmup_end`` over ``tangent_warmup_fraction`` of the run."""
        share, end = self._config.tangent_warmup_fraction, self._config.tangent_warmup_end
        return min(end, progress.fraction / share) if share else end

    def _step(self, tangent: Tensor, moving: Tensor) -> Tensor:
        """By how much the target leads u: the tangent, normalised in moving rows where the option says so."""
        if not self._config.tangent_normalisation:
            return tangent
        on = moving.to(tangent.device, non_blocking=True)
        g = tangent[on]
        norm = g.flatten(1).norm(dim=1) + self._config.tangent_constant
        return tangent.index_copy(0, on, g / expand_times(norm, g))

    def _without_gradient(
        self, student: Model, rows: PathRows, s: Tensor, v: Tensor, u: Tensor, moving: Tensor
    ) -> Tensor:
        """The total derivative of the moving rows."""
        part, on = rows.take(moving), moving.to(u.device, non_blocking=True)
        return path_derivative(
            student,
            part.x_t,
            part.t,
            s[moving],
            v[on],
            part.condition,
            part.guidance,
            value=u[on],
            method=self._config.derivative,
            step=self._config.derivative_step,
        )

    def _with_gradient(
        self, student: Model, rows: PathRows, s: Tensor, v: Tensor, moving: Tensor
    ) -> tuple[Tensor, Tensor]:
        """u (N, *D), and the moving rows' total derivative, by differences within one gradient pass.

        For gradient: time the points move in t alone, and what the movement in x adds is a detached difference.
        """
        part, end = rows.take(moving), s[moving]
        on = moving.to(v.device, non_blocking=True)
        points = stencil(below=part.t - end, above=1 - part.t, step=self._config.derivative_step)
        share = 0.0 if self._config.gradient == "time" else 1.0

        def at(offset: Tensor) -> Tensor:
            return part.x_t + share * expand_times(offset, part.x_t) * v[on]

        # In bf16 the differences would be rounding, so this pass runs in full precision.
        with full_precision(rows.x_t):
            values = velocity_with_gradient(
                student,
                torch.cat([rows.x_t, at(points.first), at(points.second)]),
                torch.cat([rows.t, part.t + points.first, part.t + points.second]),
                torch.cat([s, end, end]),
                concatenate_conditions(rows.condition, index_condition(rows.condition, torch.cat([moving, moving]))),
                torch.cat([rows.guidance, part.guidance, part.guidance]),
            )
        u, first, second = torch.split(values, [len(s), len(moving), len(moving)])
        derivative = points.apply(u[on], first, second)
        if self._config.gradient == "time":
            total = self._without_gradient(student, rows, s, v, u, moving)
            derivative = derivative + (total - derivative.detach())
        return u, derivative
