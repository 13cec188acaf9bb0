"""The correction: the distribution of the student's samples is pulled to the teacher's."""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from freeflow_core.math.flow import logit_normal, mean_square, uniform_between
from freeflow_core.types import Guidance
from freeflow_predictor_corrector.config import CorrectionConfig


def noise_levels(uniform: Tensor, config: CorrectionConfig) -> Tensor:
    """Noise levels r in (r_low, r_high], (C,) float64, from ``uniform`` (C,) in (0, 1)."""
    if config.r_distribution == "uniform":
        return uniform_between(uniform, config.r_low, config.r_high)
    unit = logit_normal(uniform, config.r_location, config.r_scale)
    return config.r_low + (config.r_high - config.r_low) * unit


def corrector_weights(weight: Tensor, r: Tensor, config: CorrectionConfig) -> Tensor:
    """The teacher's guidance (C,) at noise levels ``r`` (C,): 1 + c (g - 1) inside the corrector's interval, 1 outside.

    With a profile, 1 + c(r) (g - 1) everywhere. A guided velocity is not the velocity of any noised distribution, so
    that marginals pulled towards a strongly guided one at every noise level overshoot: hence strength and truncation.
    """
    if config.correction_guidance_profile is not None:
        levels, values = zip(*config.correction_guidance_profile, strict=True)
        return 1 + torch.from_numpy(np.interp(r.numpy(), levels, values)) * (weight - 1)
    return Guidance(1 + config.correction_guidance_scale * (weight - 1), *config.correction_guidance_interval).at(r)


@final
@dataclass(frozen=True)
class Correction:
    """Gradient of C rows.

    Args:
        residual: (C, *D) Delta_N = v_N - v, detached.
        norm: (C,) its root mean square over dimensions.
        weight: (C,) power-law weights; all 1 for power 0.
        agreement: (C,) <Delta_N, (n - x) - v> over dimensions; its mean is that of <Delta_N, true difference>.
        r: (C,) noise levels, on the host.
    """

    residual: Tensor
    norm: Tensor
    weight: Tensor
    agreement: Tensor
    r: Tensor

    def per_sample(self, u: Tensor, scale: Tensor) -> Tensor:
        """scale w <u, sg(Delta_N)> / dim, (C,): a surrogate; only its gradient scale w Delta_N / dim has a meaning.

        u moves along -Delta_N, hence the sample z - u along +Delta_N, the direction of score(teacher) -
        score(student) (Tong et al. 2025, correction objective; variational score distillation).
        """
        return scale * self.weight * (u * self.residual).flatten(1).mean(1)


def correct(v_n: Tensor, v: Tensor, sampled: Tensor, r: Tensor, *, power: float, epsilon: float) -> Correction:
    """Delta_N = v_N - v, (C, *D), of the fake velocity and the teacher's at the same noisy samples.

    ``sampled`` (C, *D) is n - x: given x_r, its mean is the velocity of the student's noised samples itself.
    """
    residual = v_n.detach() - v
    square = mean_square(residual)
    agreement = (residual * (sampled - v)).flatten(1).mean(1)
    return Correction(residual, square.sqrt(), (square + epsilon).pow(-power), agreement, r)


def balance(prediction_norm: Tensor, correction_norm: Tensor, strength: float, epsilon: float) -> Tensor:
    """lambda = alpha E||Delta_G|| / (E||Delta_N|| + epsilon), 0-d, of means over the global batch."""
    return strength * prediction_norm / (correction_norm + epsilon)
