"""Consistency models in continuous time (sCM): the end point must not move along a trajectory."""

import math
from typing import final

import torch
from torch import Tensor

from freeflow_baselines.config import ContinuousConsistencyConfig
from freeflow_baselines.shared import (
    TIME_WEIGHT,
    TimeWeight,
    VelocityObjective,
    normalised,
    path_velocity,
    ramp,
    rows_from_data,
    weighted_losses,
)
from freeflow_core.interfaces.objective import Context, Models, Role
from freeflow_core.interfaces.student import StartTimes, Student
from freeflow_core.interfaces.teacher import Teacher
from freeflow_core.math.flow import expand_times, logit_normal, mean_square
from freeflow_core.objective_kit.jumps import jumps_to, root_mean_square
from freeflow_core.objective_kit.passes import path_derivative, velocity_with_gradient
from freeflow_core.types import Batch, Draws, Loss, Losses, Progress


@final
class ContinuousConsistency(VelocityObjective):
    """min E e^-w(t) / sigma ||F_theta - sg(F + g)||^2 / dim + w(t), g the normalised tangent (Lu & Song 2024, sCM).

    algorithm 1 and eq. 8. F is TrigFlow's network; ours predicts u, and f = x - t u(x, t, 0) is the
    same consistency function, so F = rho u + (terms without u), with rho as in :func:`trigflow_tangent`. The target's
    weights are the student's own. velocity: teacher is consistency distillation (sCD), data is training (sCT).

    Fixed point: df/dt = 0, that is v - u - t du/dt = 0, the exact map to data. Cost: T + J + F + B (J = 2F).
    Known failures: high-frequency time embeddings, no tangent warm-up, derivatives in low precision; with velocity:
    data the normalisation biases the fixed point, since single tangents do not vanish. The student jumps to data alone:
    several steps need fresh noise in between.

    Random streams: ``time``, ``noise``, ``guidance``.
    """

    start_times = StartTimes.ANY_TO_DATA
    _config: ContinuousConsistencyConfig

    def roles(self, student: Student, teacher: Teacher | None) -> dict[str, Role]:
        return {TIME_WEIGHT: Role(TimeWeight(0.0))} if self._config.weighting == "learned" else {}

    def losses(self, models: Models, batch: Batch, draws: Draws, progress: Progress, context: Context) -> Losses:
        config, student = self._config, models["student"]
        t = logit_normal(draws.uniform("time"), config.time_location, config.time_scale)
        zero = torch.zeros_like(t)
        rows = rows_from_data(batch, draws, t, config)
        jumps, v = jumps_to(zero, rows), path_velocity(models, rows, config)
        u = velocity_with_gradient(student, *jumps)
        du_dt = path_derivative(student, jumps, v, value=u, options=config)
        warmup = ramp(progress, config.tangent_warmup_fraction)
        g, rho = trigflow_tangent(u.detach(), v, du_dt, t, config.data_std, warmup)
        per_sample = mean_square(expand_times(rho, u) * (u - u.detach()) - self._step(g))
        if config.prior_weight:
            per_sample = per_sample * ((1 - t) / t).to(per_sample)
        weighted, extra = weighted_losses(models, per_sample, t, zero)
        terms = {
            "tangent": root_mean_square(g),
            "consistency_residual": root_mean_square(v - u.detach() - expand_times(t, u) * du_dt),
        }
        return {"student": Loss(weighted, terms), **extra}

    def _step(self, g: Tensor) -> Tensor:
        """By how much the target leads F: the tangent, normalised or clipped."""
        kind = self._config.tangent_normalisation
        if kind == "none":
            return g
        if kind == "clip":
            return g.clamp(-1, 1)
        return normalised(g, self._config.tangent_constant, math.sqrt(g[0].numel()) if kind == "rms" else 1.0)


def trigflow_tangent(
    u: Tensor, v: Tensor, du_dt: Tensor, t: Tensor, data_std: float, warmup: float
) -> tuple[Tensor, Tensor]:
    """g (N, *D) = cos(tau) df/dtau at ``warmup`` 1, and rho (N,), for a network u on the linear path.

    TrigFlow's time is tan(tau) = t / (sd (1 - t)) and its state x' = x_t / rho, rho^2 = (1-t)^2 + t^2 / sd^2. Written
    out, the paper's -cos^2 (sd F - dx'/dtau) - r [cos sin x' + sd cos sin dF/dtau] is, since the terms in x cancel,
        g = sd (1-t)^2 / rho (v - u) - r sd t (1-t) [rho du/dt + c / rho (v - u)],  c = (1-t) - t / sd^2,
    which is sd (1-t) rho (v - u - t du/dt) for r = 1.

    Args:
        u, v, du_dt: (N, *D) u(x_t, t, 0), the velocity, and the total derivative of u along it.
        t: (N,) on the host.
        data_std: sd.
        warmup: r in [0, 1].
    """
    rho = ((1 - t).square() + (t / data_std).square()).sqrt()
    c = (1 - t) - t / data_std**2
    slow = data_std * (1 - t).square() / rho
    fast = warmup * data_std * t * (1 - t)
    ahead = v - u
    g = expand_times(slow - fast * c / rho, u) * ahead - expand_times(fast * rho, u) * du_dt
    return g, rho
