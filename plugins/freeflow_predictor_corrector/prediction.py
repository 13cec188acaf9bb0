"""The predictor: the student's own path from the prior must follow the teacher's field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import BuildContext, Model
from freeflow_core.math.derivative import DerivativeMethod
from freeflow_core.math.flow import average_velocity_jump, expand_times, mean_square
from freeflow_core.types import index_condition
from freeflow_predictor_corrector.config import PredictionConfig
from freeflow_predictor_corrector.duration_derivative import duration_derivative, relative_error
from freeflow_predictor_corrector.guidance import predictor_weights
from freeflow_predictor_corrector.rows import PriorRows, Query, on


def check_precision(config: PredictionConfig, context: BuildContext) -> None:
    """Raise ``ConfigError`` for a derivative that the run's precision would drown, before anything is trained."""
    if context.precision == "bf16" and config.derivative == DerivativeMethod.ONE_SIDED.value:
        raise ConfigError(
            "objective.derivative=one-sided reuses the gradient pass, which runs in bf16 here; its rounding would "
            "swamp the difference. Use objective.derivative=central or forward-mode, or runtime.precision=float32."
        )


@final
@dataclass(frozen=True)
class Prediction:
    """Losses of P prediction rows.

    Args:
        per_sample: (P,) with gradient.
        norm: (P,) root mean square over dimensions of the residual, detached.
        weight: (P,) power-law weights, detached.
        terms: further scalars for logging.
    """

    per_sample: Tensor
    norm: Tensor
    weight: Tensor
    terms: Mapping[str, Tensor] = field(default_factory=dict)


@final
class Predictor:
    """Regresses u on its own generating target (Tong et al. 2025, prediction objective; docs: the README)."""

    def __init__(self, config: PredictionConfig) -> None:
        self.config = config
        self.method = DerivativeMethod(config.derivative)

    @torch.no_grad()
    def query(self, rows: PriorRows, u: Tensor) -> Query:
        """The teacher is asked at the student's own state: v(f(z, d), 1 - d) with f = z - d u."""
        s = rows.s
        x = average_velocity_jump(rows.z, u.detach(), torch.ones_like(s), s)
        t = 1 - rows.d
        return Query(x, t, predictor_weights(rows.guidance, t, self.config))

    def loss(self, student: Model, rows: PriorRows, u: Tensor, v: Tensor, step: int) -> Prediction:
        """Losses of the rows.

        Args:
            student: its ``bare`` network is differentiated in d.
            rows: the prediction rows.
            u: (P, *D) their average velocities, with gradient.
            v: (P, *D) the teacher's at ``query``.
            step: the run's step, for the derivative's check.
        """
        du_dd = self._derivative(student, rows, u, self.method)
        terms = {}
        every = self.config.check_derivative_every
        if every and step % every == 0:
            exact = self._derivative(student, rows, u, DerivativeMethod.FORWARD_MODE)
            terms["derivative_relative_error"] = relative_error(du_dd, exact)
        per_sample, square, weight = prediction_loss(
            u, du_dd, v, rows.d, power=self.config.weight_power, epsilon=self.config.weight_epsilon
        )
        return Prediction(per_sample, square.sqrt(), weight, terms)

    def _derivative(self, student: Model, rows: PriorRows, u: Tensor, method: DerivativeMethod) -> Tensor:
        guidance = on(rows.z, rows.guidance)

        def velocity(s: Tensor, chosen: Tensor | None) -> Tensor:
            z, g, condition = rows.z, guidance, rows.condition
            if chosen is not None:
                device_rows = chosen.to(z.device, non_blocking=True)
                z, g, condition = z[device_rows], g[device_rows], index_condition(condition, chosen)
            t = torch.ones_like(s)
            result: Tensor = student.bare.average_velocity(student.bare(z, t, s, condition, g), z, t, s)
            return result.to(z.dtype)

        return duration_derivative(velocity, rows.d, rows.s, method=method, step=self.config.derivative_step, value=u)


def prediction_loss(
    u: Tensor, du_dd: Tensor, v: Tensor, d: Tensor, *, power: float, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """1/2 w ||u - sg(v - d du/dd)||^2 / dim, whose gradient is w Delta_G / dim times du/dtheta.

    Delta_G = u + d du/dd - v(f, 1 - d) is the residual of the identity that the exact map fulfils
    (Tong et al. 2025, prediction objective, with t = 1 the noise), and w = 1 / (||Delta_G||^2 / dim + epsilon)^power.
    Squares are *means* over the ``dim`` dimensions of a state throughout.

    Args:
        u: (N, *D) average velocities with gradient.
        du_dd: (N, *D) their derivative in the duration.
        v: (N, *D) the teacher's velocities at the students' states.
        d: (N,) durations.

    Returns:
        ``per_sample`` (N,) with gradient; ||Delta_G||^2 / dim and w, (N,) detached.
    """
    with torch.no_grad():
        target = v - expand_times(d, u) * du_dd
    square = mean_square(u - target)
    weight = (square.detach() + epsilon).pow(-power)
    return 0.5 * weight * square, square.detach(), weight
