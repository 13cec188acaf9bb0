"""Lagrangian distillation: the end point, as the end time moves on, must follow the velocity there."""

from typing import final

import torch
from torch import Tensor

from freeflow_baselines.config import LagrangianConfig
from freeflow_baselines.shared import FlowMapObjective, rows_from_data, time_pairs, weighted_losses
from freeflow_core.interfaces.objective import Context, Model, Models
from freeflow_core.interfaces.student import StartTimes
from freeflow_core.math.derivative import full_precision, stencil
from freeflow_core.math.flow import average_velocity_jump, expand_times
from freeflow_core.objective_kit.jumps import (
    guided_field,
    jumps_from_noise,
    jumps_to,
    root_mean_square,
    velocities_with_gradient,
)
from freeflow_core.objective_kit.passes import (
    Jumps,
    duration_derivative,
    take,
    velocity_with_gradient,
    velocity_without_gradient,
)
from freeflow_core.types import Batch, Draws, Loss, Losses, Progress


@final
class Lagrangian(FlowMapObjective):
    """min E || dX(x_t, t, s)/ds - v(X(x_t, t, s), s) ||^2, with s = t rows || u(x_t, t, t) - v(x_t, t) ||^2.

    Lagrangian map distillation (Boffi et al. 2024, eq. 3.6) and self-distillation (Boffi et al.
    2025, LSD), with dX/ds = u - (t - s) du/ds. No gradient flows into X or the velocity, as in LSD;
    ``gradient`` says whether it flows through du/ds. velocity: data is self-distillation: instants regress on n - x,
    and the velocity at X is the student's own u(X, s, s). start: prior is data-free and trains jumps from t = 1 alone.

    Fixed point: the exact map. Cost with the share m = 1 - ``instant_share`` of moving rows: gradient: derivative
    (1 + 2m)(F + B) + T; target F + B + mJ + T. Known failure: over-smooth samples at large scale.

    Random streams: ``time``, ``end-time``, ``noise`` (or ``prior``), ``guidance``.
    """

    _config: LagrangianConfig

    def __init__(self, config: LagrangianConfig) -> None:
        super().__init__(config)
        self.needs_data = config.start == "data"
        self.start_times = StartTimes.ANY if self.needs_data else StartTimes.PRIOR

    def losses(self, models: Models, batch: Batch, draws: Draws, progress: Progress, context: Context) -> Losses:
        config, student = self._config, models["student"]
        own: Tensor | None = None  # the samples' own velocities, for self-distillation
        if self.needs_data:
            t, s, moving = time_pairs(draws, config)
            rows = rows_from_data(batch, draws, t, config)
            jumps, own = jumps_to(s, rows), rows.velocity if config.velocity == "data" else None
        else:
            jumps = jumps_from_noise(models, batch, draws, config)._replace(s=draws.uniform("end-time"))
            moving = torch.arange(len(jumps.s))
        u, du_ds = self._velocity_and_derivative(student, jumps, moving)
        x_s = average_velocity_jump(jumps.x_t, u.detach(), jumps.t, jumps.s)
        length = expand_times((jumps.t - jumps.s)[moving], du_ds)
        along = u.index_add(0, moving.to(u.device, non_blocking=True), -length * du_ds)  # dX/ds; u where s = t
        if own is None:
            v = guided_field(models, x_s, jumps.s, jumps, config)  # where s = t, X is x_t itself: one call for all
        else:
            v = self._own_velocity(student, jumps, x_s, moving, own)
        difference = along - v
        weighted, extra = weighted_losses(models, self.squares(difference), jumps.t, jumps.s)
        return {"student": Loss(weighted, {"lagrangian_residual": root_mean_square(difference)}), **extra}

    def _velocity_and_derivative(self, student: Model, jumps: Jumps, moving: Tensor) -> tuple[Tensor, Tensor]:
        """u (N, *D) with gradient, and du/ds of the moving rows, with gradient where the option says so."""
        config, part = self._config, jumps.take(moving)
        if config.gradient == "target":
            u = velocity_with_gradient(student, *jumps)
            return u, -duration_derivative(student, part, value=take(u, moving), options=config)
        # One gradient pass over all rows and two further points of each moving row: differences carry the gradient,
        # through the wrapped network alone. In bf16 they would be rounding, so this pass runs in full precision.
        points = stencil(below=part.s, above=part.t - part.s, step=config.derivative_step)
        ahead, further = (part._replace(s=part.s + offset) for offset in (points.first, points.second))
        with full_precision(jumps.x_t):
            u, first, second = velocities_with_gradient(student, jumps, ahead, further)
        return u, points.apply(take(u, moving), first, second)

    @torch.no_grad()
    def _own_velocity(self, student: Model, jumps: Jumps, x_s: Tensor, moving: Tensor, own: Tensor) -> Tensor:
        """The student's u(X, s, s) in moving rows, the sample's own velocity in the others, (N, *D)."""
        part = jumps.take(moving)._replace(x_t=take(x_s, moving))
        u = velocity_without_gradient(student, *part._replace(t=part.s))
        return own.index_copy(0, moving.to(own.device, non_blocking=True), u)
