"""Eulerian distillation: the end point must not move when the start slides along its trajectory."""

from typing import final

from torch import Tensor

from freeflow_baselines.config import EulerianConfig
from freeflow_baselines.shared import (
    FlowMapObjective,
    normalised,
    path_velocity,
    ramp,
    rows_from_data,
    time_pairs,
    weighted_losses,
)
from freeflow_core.interfaces.objective import Context, Model, Models
from freeflow_core.math.derivative import full_precision, stencil
from freeflow_core.math.flow import expand_times
from freeflow_core.objective_kit.jumps import jumps_to, root_mean_square, velocities_with_gradient
from freeflow_core.objective_kit.passes import Jumps, path_derivative, take, velocity_with_gradient
from freeflow_core.types import Batch, Draws, Loss, Losses, Progress


@final
class Eulerian(FlowMapObjective):
    """min E || dX(x_t, t, s)/dt + v . grad_x X ||^2, whose residual is v - u - (t - s) du/dt, du/dt a total derivative.

    Eulerian map distillation (Boffi et al. 2024, eq. 3.9; 2025). ``gradient``
    says where the gradient flows: through everything (EMD), through d/dt alone (ESD), or through u alone, with the
    derivative part of the target: AYF-EMD (Sabour et al. 2025), whose tangent normalisation and
    warm-up are options. Its autoguidance is a teacher, ``autoguidance``, with weights from 1 to 3.

    Fixed point: the exact map, as MeanFlow's; with velocity: data in the mean over data, not sample by sample.
    Cost with the share m = 1 - ``instant_share`` of moving rows: T + F + B + mJ for target, T + (1 + 2m)(F + B) for
    full, and mJ more for time. Known failure: full is unstable.

    Random streams: ``time``, ``end-time``, ``noise``, ``guidance``.
    """

    _config: EulerianConfig

    def losses(self, models: Models, batch: Batch, draws: Draws, progress: Progress, context: Context) -> Losses:
        config, student = self._config, models["student"]
        t, s, moving = time_pairs(draws, config)
        rows = rows_from_data(batch, draws, t, config)
        jumps, v = jumps_to(s, rows), path_velocity(models, rows, config)
        part, v_part = jumps.take(moving), take(v, moving)
        if config.gradient == "target":
            u = velocity_with_gradient(student, *jumps)
            du_dt = path_derivative(student, part, v_part, value=take(u, moving), options=config)
        else:
            u, du_dt = self._with_gradient(student, jumps, part, v_part, moving)
        on = moving.to(u.device, non_blocking=True)
        warmup = ramp(progress, config.tangent_warmup_fraction, config.tangent_warmup_end)
        length = expand_times((t - s)[moving], du_dt) * warmup
        tangent = (v - u).index_add(0, on, -length * du_dt)
        difference = tangent
        if config.gradient == "target":
            step = tangent.detach()
            if config.tangent_normalisation:
                step = step.index_copy(0, on, normalised(step[on], config.tangent_constant))
            difference = step + u.detach() - u
        weighted, extra = weighted_losses(models, self.squares(difference), t, s)
        return {"student": Loss(weighted, {"eulerian_residual": root_mean_square(tangent)}), **extra}

    def _with_gradient(
        self, student: Model, jumps: Jumps, part: Jumps, v: Tensor, moving: Tensor
    ) -> tuple[Tensor, Tensor]:
        """u (N, *D), and the moving rows' total derivative, by differences within one gradient pass.

        For gradient: time the points move in t alone, and what the movement in x adds is a detached difference.
        """
        config = self._config
        points = stencil(below=part.t - part.s, above=1 - part.t, step=config.derivative_step)
        share = 0.0 if config.gradient == "time" else 1.0

        def moved(offset: Tensor) -> Jumps:
            return part._replace(x_t=part.x_t + share * expand_times(offset, v) * v, t=part.t + offset)

        # In bf16 the differences would be rounding, so this pass runs in full precision.
        with full_precision(jumps.x_t):
            u, first, second = velocities_with_gradient(student, jumps, moved(points.first), moved(points.second))
        at_zero = take(u, moving)
        derivative = points.apply(at_zero, first, second)
        if config.gradient == "time":
            total = path_derivative(student, part, v, value=at_zero, options=config)
            derivative = derivative + (total - derivative.detach())
        return u, derivative
