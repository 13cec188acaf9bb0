"""Guidance weights: drawn once per example, resolved differently by predictor and corrector."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from freeflow_core.math.flow import uniform_between
from freeflow_core.types import Draws, Guidance
from freeflow_predictor_corrector.config import CorrectionConfig, GuidanceConfig, PredictionConfig


def draw_guidance(draws: Draws, config: GuidanceConfig) -> Tensor:
    """One weight g per row, (N,) float64 on the host; student and fake velocity are conditioned on it."""
    return uniform_between(draws.uniform("guidance"), config.guidance_min, config.guidance_max)


def predictor_weights(weight: Tensor, t: Tensor, config: PredictionConfig) -> Tensor:
    """The teacher's weights at times ``t`` (N,): g inside ``guidance_interval``, 1 outside."""
    return Guidance(weight, *config.guidance_interval).at(t)


def corrector_weights(weight: Tensor, r: Tensor, config: CorrectionConfig) -> Tensor:
    """The teacher's weights at noise levels ``r`` (N,): 1 + c (g - 1) inside the corrector's interval, 1 outside.

    With a profile, 1 + c(r) (g - 1) everywhere.

    Guidance truncation: a guided velocity is not the velocity of any noised distribution, so that marginals pulled
    towards it at every noise level overshoot.
    """
    if config.correction_guidance_profile is not None:
        levels, values = zip(*config.correction_guidance_profile, strict=True)
        return 1 + torch.from_numpy(np.interp(r.numpy(), levels, values)) * (weight - 1)
    return Guidance(1 + config.correction_guidance_scale * (weight - 1), *config.correction_guidance_interval).at(r)
