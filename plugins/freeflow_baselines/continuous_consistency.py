"""Consistency models in continuous time (sCM): the end point must not move along a trajectory."""

from __future__ import annotations

import math
from typing import Self, final

import torch
from torch import Tensor

from freeflow_baselines.config import ContinuousConsistencyConfig
from freeflow_baselines.rows import host_zeros, noised_rows, path_velocity, root_mean_square
from freeflow_baselines.time_weight import TIME_WEIGHT, time_weight_role, weighted_losses
from freeflow_core.config import ComponentConfig
from freeflow_core.interfaces import (
    AverageVelocityStudent,
    BuildContext,
    Context,
    Models,
    Objective,
    Role,
    StartTimes,
    Student,
    Teacher,
)
from freeflow_core.math.flow import expand_times, logit_normal, mean_square
from freeflow_core.objective_kit.passes import check_derivative, path_derivative, velocity_with_gradient
from freeflow_core.types import Batch, Draws, Loss, Progress


@final
class ContinuousConsistency(Objective):
    """min E e^-w(t) / sigma ||F_theta - sg(F + g)||^2 / dim + w(t), g the normalised tangent (Lu & Song 2024, sCM).

    arXiv 2410.11081, algorithm 1 and eq. 8. F is TrigFlow's network; ours predicts u, and f = x - t u(x, t, 0) is the
    same consistency function, so F = rho u + (terms without u), with rho as in :func:`trigflow_tangent`. The target's
    weights are the student's own. velocity: teacher is consistency distillation (sCD), data is training (sCT).

    Fixed point: df/dt = 0, that is v - u - t du/dt = 0, the exact map to data. Cost: T + J + F + B (J = 2F).
    Known failures: high-frequency time embeddings, no tangent warm-up, derivatives in low precision; with velocity:
    data the normalisation biases the fixed point, since single tangents do not vanish. The student jumps to data alone:
    several steps need fresh noise in between.

    Random streams: ``time``, ``noise``, ``guidance``.
    """

    needs_data = True
    requires = AverageVelocityStudent
    start_times = StartTimes.ANY_TO_DATA

    def __init__(self, config: ContinuousConsistencyConfig) -> None:
        self._config = config
        self.needs_teacher = config.velocity == "teacher"

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        assert isinstance(config, ContinuousConsistencyConfig)
        check_derivative(config.derivative, context)
        return cls(config)

    def roles(self, student: Student, teacher: Teacher | None) -> dict[str, Role]:
        """The learned weight of each time (the paper's adaptive weighting w(t))."""
        return {TIME_WEIGHT: time_weight_role(0.0)} if self._config.weighting == "learned" else {}

    def losses(
        self, models: Models, batch: Batch, draws: Draws, progress: Progress, context: Context
    ) -> dict[str, Loss]:
        config, student = self._config, models["student"]
        t = logit_normal(draws.uniform("time"), config.time_location, config.time_scale)
        rows = noised_rows(models, batch, draws, t, config)
        v, zero = path_velocity(models, rows, config), host_zeros(rows)
        u = velocity_with_gradient(student, rows.x_t, t, zero, rows.condition, rows.guidance)
        du_dt = path_derivative(
            student,
            rows.x_t,
            t,
            zero,
            v,
            rows.condition,
            rows.guidance,
            value=u,
            method=config.derivative,
            step=config.derivative_step,
        )
        with torch.no_grad():
            g, rho = trigflow_tangent(u.detach(), v, du_dt, t, config.data_std, self._warmup(progress))
            step = self._normalised(g)
        per_sample = mean_square(expand_times(rho, u) * (u - u.detach()) - step)
        if config.prior_weight:
            per_sample = per_sample * ((1 - t) / t).to(per_sample)
        weighted, extra = weighted_losses(models, per_sample, t, zero)
        terms = {
            "tangent": root_mean_square(g),
            "consistency_residual": root_mean_square(v - u.detach() - expand_times(t, u) * du_dt),
        }
        return {"student": Loss(weighted, terms), **extra}

    def _warmup(self, progress: Progress) -> float:
        """r, rising from 0 to 1 over ``tangent_warmup_fraction`` of the run."""
        share = self._config.tangent_warmup_fraction
        return min(1.0, progress.fraction / share) if share else 1.0

    def _normalised(self, g: Tensor) -> Tensor:
        """g / (|g| + c), or g clipped (section 4.2)."""
        kind = self._config.tangent_normalisation
        if kind == "none":
            return g
        if kind == "clip":
            return g.clamp(-1, 1)
        norm = g.flatten(1).norm(dim=1) / (math.sqrt(g[0].numel()) if kind == "rms" else 1.0)
        return g / expand_times(norm + self._config.tangent_constant, g)


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
