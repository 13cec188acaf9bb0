"""Consistency models in discrete time: two neighbours on one trajectory must name the same end point."""

import math
from typing import final

import torch
from torch import Tensor

from freeflow_baselines.config import ConsistencyConfig
from freeflow_baselines.shared import TARGET, VelocityObjective, averaged_target, rows_from_data, solver_step
from freeflow_core.interfaces import Context, Models, Role, StartTimes, Student, Teacher
from freeflow_core.math.flow import (
    average_velocity_jump,
    like_states,
    linear_interpolate,
    logit_normal,
    mean_square,
    uniform_grid,
)
from freeflow_core.objective_kit.jumps import guided_field, root_mean_square
from freeflow_core.objective_kit.passes import velocity_with_gradient, velocity_without_gradient
from freeflow_core.objective_kit.rows import NoisyRows
from freeflow_core.types import Batch, Draws, Loss, Losses, Progress


@final
class Consistency(VelocityObjective):
    """min E w d(f(x_t, t), sg f_target(x_r, r)) with f(x, t) = x - t u(x, t, 0), at neighbouring times r < t.

    Consistency distillation (Song et al. 2023, eq. 7 and algorithm 2): x_r is one step of the
    teacher's solver. With velocity: data, consistency training (eq. 10, algorithm 3): x_r joins the same data and
    noise. Improved (Song & Dhariwal 2023, iCT): w = 1 / (t - r), pseudo-Huber d, more and more grid times, lognormal
    ones oftener, the student's own current weights as target. ECT (Geng et al. 2024): r follows t continuously, ever
    closer. f(x, 0) = x holds by construction, so the boundary needs no skip coefficients. Ours: the grid's ends are
    exactly 0 and 1, and the solver steps in t, because at t = 1, where sampling starts, the papers' sigma is infinite.

    Fixed point: the solver's N-step map, not the exact one; the error of one interval is O(h^2) with Euler's step and
    O(h^3) with Heun's. Cost: 2T + 2F + B with Heun, T + 2F + B with Euler (T = F, 2F where guided; B = 2F).
    Known failures: a coarse grid's bias, a stale target, and more sampling steps that do not help. The student jumps to
    data alone: several steps need fresh noise in between.

    Random streams: ``noise``, ``guidance``, ``grid-index`` (uniform times) or ``time``.
    """

    start_times = StartTimes.ANY_TO_DATA
    _config: ConsistencyConfig

    def roles(self, student: Student, teacher: Teacher | None) -> dict[str, Role]:
        return averaged_target(student, self._config.target_halflife_images)

    def losses(self, models: Models, batch: Batch, draws: Draws, progress: Progress, context: Context) -> Losses:
        student, target = models["student"], models.get(TARGET, models["student"])
        t, r = neighbours(draws, progress.fraction, self._config)
        zero = torch.zeros_like(t)
        rows = rows_from_data(batch, draws, t, self._config)
        x_r = self._neighbour(models, rows, r)
        u = velocity_with_gradient(student, rows.x_t, t, zero, rows.condition, rows.guidance)
        u_r = velocity_without_gradient(target, x_r, r, zero, rows.condition, rows.guidance)
        difference = average_velocity_jump(rows.x_t, u, t, zero) - average_velocity_jump(x_r, u_r, r, zero)
        per_sample = self._distance(difference)
        if self._config.weighting == "interval":
            per_sample = per_sample / like_states(t - r, per_sample)
        return {"student": Loss(per_sample, {"consistency_residual": root_mean_square(difference)})}

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


def neighbours(draws: Draws, fraction: float, config: ConsistencyConfig) -> tuple[Tensor, Tensor]:
    """Times t in (0, 1] and r in [0, t), (N,) float64 on the host, after a ``fraction`` of the run."""
    lognormal = config.neighbour == "mapping" or config.times == "lognormal"
    drawn = logit_normal(draws.uniform("time"), config.time_location, config.time_scale) if lognormal else None
    if drawn is not None and config.neighbour == "mapping":
        return drawn, mapped(drawn, min(config.stages, int(fraction * config.stages) + 1), config)
    grid = consistency_grid(config, steps_at(fraction, config))  # falls from 1 to 0
    # A lognormal sigma falls into one of the intervals (iCT, eq. 10, whose ends take the tails here).
    index = draws.integers("grid-index", len(grid) - 1) if drawn is None else torch.searchsorted(-grid[1:-1], -drawn)
    return grid[index], grid[index + 1]


def steps_at(fraction: float, config: ConsistencyConfig) -> int:
    """N after a ``fraction`` of the run: min(s_0 2^floor(fraction K), s_1), K the number of parts (iCT, eq. 11)."""
    if config.start_steps is None:
        return config.num_steps
    parts = math.floor(math.log2(config.num_steps / config.start_steps)) + 1
    return int(min(config.start_steps * 2 ** math.floor(fraction * parts), config.num_steps))


def mapped(t: Tensor, stage: int, config: ConsistencyConfig) -> Tensor:
    """r (N,) with sigma_r = sigma_t max(0, 1 - (1 + 8 sigmoid(-sigma_t)) / q^stage) (ECT, section 3.3)."""
    sigma = t / (1 - t)
    sigma_r = sigma * (1 - (1 + 8 * torch.sigmoid(-sigma)) / config.stage_base**stage).clamp(min=0)
    return sigma_r / (1 + sigma_r)


def consistency_grid(config: ConsistencyConfig, num_steps: int) -> Tensor:
    """(N + 1,) times falling from 1 to 0, float64 on the host.

    karras: sigma_i = (sigma_max^(1/rho) + i/N (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho (Karras et al. 2022, eq. 5),
    t = sigma / (1 + sigma), with both ends moved to 1 and 0.
    """
    share = 1 - uniform_grid(num_steps)
    if config.grid == "uniform":
        return 1 - share
    top, bottom = config.sigma_max ** (1 / config.rho), config.sigma_min ** (1 / config.rho)
    sigma = (top + share * (bottom - top)).pow(config.rho)
    grid = sigma / (1 + sigma)
    grid[0], grid[-1] = 1.0, 0.0
    return grid
