"""Consistency models in discrete time: two neighbours on one trajectory must name the same end point."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from freeflow_baselines.config import ConsistencyConfig
from freeflow_baselines.shared import TARGET, averaged_target, rows_from_data, solver_step
from freeflow_core.interfaces.objective import Context, Models, Objective, Role
from freeflow_core.interfaces.student import AverageVelocityStudent, StartTimes, Student
from freeflow_core.interfaces.teacher import Teacher
from freeflow_core.math.flow import average_velocity_jump, linear_interpolate, mean_square, uniform_grid
from freeflow_core.objective_kit.jumps import guided_field, root_mean_square
from freeflow_core.objective_kit.passes import velocity_with_gradient, velocity_without_gradient
from freeflow_core.objective_kit.rows import NoisyRows
from freeflow_core.types import Batch, Draws, Loss, Progress


@final
class Consistency(Objective):
    """min E d(f(x_t, t), sg f_target(x_r, r)) with f(x, t) = x - t u(x, t, 0), on neighbouring grid times r < t.

    Consistency distillation (Song et al. 2023, eq. 7 and algorithm 2): x_r is one step of the
    teacher's solver. With velocity: data, consistency training (eq. 10, algorithm 3): x_r joins the same data and
    noise. f(x, 0) = x holds by construction, so the boundary needs no skip coefficients. Ours: the grid's ends are
    exactly 0 and 1, and the solver steps in t, because at t = 1, where sampling starts, the paper's sigma is infinite.

    Fixed point: the solver's N-step map, not the exact one; the error of one interval is O(h^2) with Euler's step and
    O(h^3) with Heun's. Cost: 2T + 2F + B with Heun, T + 2F + B with Euler (T = F, 2F where guided; B = 2F).
    Known failures: a coarse grid's bias, a stale target, and more sampling steps that do not help. The student jumps to
    data alone: several steps need fresh noise in between.

    Random streams: ``noise``, ``guidance``, ``grid-index``.
    """

    needs_data = True
    requires = AverageVelocityStudent
    start_times = StartTimes.ANY_TO_DATA

    def __init__(self, config: ConsistencyConfig) -> None:
        self._config = config
        self._grid = consistency_grid(config)
        self.needs_teacher = config.velocity == "teacher"

    def roles(self, student: Student, teacher: Teacher | None) -> dict[str, Role]:
        return averaged_target(student, self._config.target_halflife_images)

    def losses(
        self, models: Models, batch: Batch, draws: Draws, progress: Progress, context: Context
    ) -> dict[str, Loss]:
        student, target = models["student"], models.get(TARGET, models["student"])
        index = draws.integers("grid-index", self._config.num_steps)
        t, r = self._grid[index], self._grid[index + 1]  # the grid falls from 1 to 0
        zero = torch.zeros_like(t)
        rows = rows_from_data(batch, draws, t, self._config)
        x_r = self._neighbour(models, rows, r)
        u = velocity_with_gradient(student, rows.x_t, t, zero, rows.condition, rows.guidance)
        u_r = velocity_without_gradient(target, x_r, r, zero, rows.condition, rows.guidance)
        difference = average_velocity_jump(rows.x_t, u, t, zero) - average_velocity_jump(x_r, u_r, r, zero)
        return {"student": Loss(self._distance(difference), {"consistency_residual": root_mean_square(difference)})}

    def _neighbour(self, models: Models, rows: NoisyRows, r: Tensor) -> Tensor:
        """x_r (N, *D): a solver step of the teacher (eq. 6), or the sample's own path (eq. 9)."""
        if self._config.velocity == "data":
            return linear_interpolate(rows.x, rows.noise, r)

        def field(x: Tensor, time: Tensor) -> Tensor:
            return guided_field(models, x, time, rows, self._config)

        return solver_step(field, rows.x_t, rows.t, r, self._config.solver)

    def _distance(self, difference: Tensor) -> Tensor:
        """(N,) mean square, or pseudo-Huber (Song & Dhariwal 2023, eq. 8)."""
        if self._config.distance == "squared":
            return mean_square(difference)
        flat = difference.flatten(1)
        c = self._config.huber_constant * flat.shape[1] ** 0.5
        return (flat.square().sum(1) + c**2).sqrt() - c


def consistency_grid(config: ConsistencyConfig) -> Tensor:
    """(N + 1,) times falling from 1 to 0, float64 on the host.

    karras: sigma_i = (sigma_max^(1/rho) + i/N (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho (Karras et al. 2022, eq. 5),
    t = sigma / (1 + sigma), with both ends moved to 1 and 0.
    """
    share = 1 - uniform_grid(config.num_steps)
    if config.grid == "uniform":
        return 1 - share
    top, bottom = config.sigma_max ** (1 / config.rho), config.sigma_min ** (1 / config.rho)
    sigma = (top + share * (bottom - top)).pow(config.rho)
    grid = sigma / (1 + sigma)
    grid[0], grid[-1] = 1.0, 0.0
    return grid
