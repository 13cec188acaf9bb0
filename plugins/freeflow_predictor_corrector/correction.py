"""The corrector: the distribution of the student's samples is pulled to the teacher's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from freeflow_core.interfaces import Model, Teacher
from freeflow_core.math.flow import linear_interpolate, linear_velocity, mean_square
from freeflow_core.types import Draws, Progress
from freeflow_predictor_corrector.config import CorrectionConfig
from freeflow_predictor_corrector.guidance import corrector_weights
from freeflow_predictor_corrector.rows import PriorRows, Query, on, velocity_with_gradient
from freeflow_predictor_corrector.times import noise_levels


@final
@dataclass(frozen=True)
class Noised:
    """The student's samples, noised: ``query`` asks the teacher at (x_r, r); ``velocity`` (C, *D) is dx_r/dr."""

    query: Query
    velocity: Tensor


@final
@dataclass(frozen=True)
class Correction:
    """Gradient of C correction rows, and the fake velocity's own loss.

    Args:
        residual: (C, *D) Delta_N = v_N - v, detached.
        norm: (C,) its root mean square over dimensions.
        weight: (C,) power-law weights; all 1 for power 0.
        fake_per_sample: (C,) the fake velocity's flow-matching loss, with gradient.
    """

    residual: Tensor
    norm: Tensor
    weight: Tensor
    fake_per_sample: Tensor

    def per_sample(self, u: Tensor, scale: Tensor) -> Tensor:
        """scale w <u, sg(Delta_N)> / dim, (C,): a surrogate; only its gradient scale w Delta_N / dim has a meaning.

        u moves along -Delta_N, hence the sample z - u along +Delta_N, the direction of score(teacher) -
        score(student) (Tong et al. 2025, correction objective; variational score distillation).
        """
        return scale * self.weight * (u * self.residual).flatten(1).mean(1)


@final
class Corrector:
    """Variational score distillation of the end point, in velocities (Tong et al. 2025, correction objective)."""

    def __init__(self, config: CorrectionConfig) -> None:
        self.config = config

    @torch.no_grad()
    def query(self, rows: PriorRows, u: Tensor, draws: Draws, r_uniform: Tensor, teacher: Teacher) -> Noised:
        """Noise the samples x = z - u to level r.

        Args:
            rows: the correction rows; all have d = 1.
            u: (C, *D) their average velocities.
            draws: of these rows, for the noise.
            r_uniform: (C,) uniform draws behind r.
            teacher: r stays within the times where its field is defined.
        """
        x = rows.z - u.detach()
        n = draws.noise("correction-noise", tuple(x.shape[1:])).to(x)
        r = noise_levels(r_uniform, self.config).clamp(*teacher.time_range)
        r_x = on(x, r)
        x_r = linear_interpolate(x, n, r_x)
        weight = corrector_weights(rows.guidance, r, self.config)
        return Noised(Query(x_r, r, weight), linear_velocity(x, n))

    def correct(self, fake_velocity: Model, rows: PriorRows, noised: Noised, v: Tensor) -> Correction:
        """One pass of the fake velocity g serves both: v_N for the student, and its own flow matching.

        Args:
            fake_velocity: asked at s = t = r, where the average velocity is the instantaneous one.
            rows: the correction rows.
            noised: from ``query``.
            v: (C, *D) the teacher's velocity there.
        """
        r = on(noised.query.x, noised.query.t)
        v_n = velocity_with_gradient(fake_velocity, noised.query.x, r, r, rows.condition, rows.guidance)
        residual = v_n.detach() - v
        square = mean_square(residual)
        weight = (square + self.config.weight_epsilon).pow(-self.config.correction_weight_power)
        return Correction(residual, square.sqrt(), weight, mean_square(v_n - noised.velocity))

    def strength(self, progress: Progress) -> float:
        """alpha, rising linearly from 0 over ``correction_warmup_images``."""
        warmup = self.config.correction_warmup_images
        return self.config.balance_strength * (min(1.0, progress.images / warmup) if warmup else 1.0)


def balance(prediction_norm: Tensor, correction_norm: Tensor, strength: float, epsilon: float) -> Tensor:
    """lambda = alpha E||Delta_G|| / (E||Delta_N|| + epsilon), 0-d, of means over the global batch."""
    return strength * prediction_norm / (correction_norm + epsilon)
