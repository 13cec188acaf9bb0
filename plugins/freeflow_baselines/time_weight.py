"""A learned weight of each time, trained beside the student."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn

from freeflow_core.interfaces import Models, Role
from freeflow_core.math.flow import like_states
from freeflow_core.types import Loss

TIME_WEIGHT = "time_weight"
_FREQUENCIES = 8


@final
class TimeWeight(nn.Module):
    """w(t, s) (N,): linear in sines and cosines of both times.

    The uncertainty weighting exp(-w) L + w (Kendall et al. 2018; Karras et al. 2024, EDM2, eq. 14) has its minimum at
    w = log L, so that every time contributes alike: exp(-w) L = 1.

    Args:
        initial: w of every time at the start; log of the dimension, where L is a sum over dimensions.
    """

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.linear = nn.Linear(4 * _FREQUENCIES, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, initial)

    def forward(self, t: Tensor, s: Tensor) -> Tensor:
        frequencies = math.pi * torch.arange(1, _FREQUENCIES + 1, device=t.device, dtype=t.dtype)
        angles = torch.cat([t.unsqueeze(1) * frequencies, s.unsqueeze(1) * frequencies], 1)
        result: Tensor = self.linear(torch.cat([angles.sin(), angles.cos()], 1)).squeeze(1)
        return result


def time_weight_role(initial: float) -> Role:
    """The trainable role, with the run's own optimizer."""
    return Role(TimeWeight(initial), trainable=True)


def weighted_losses(models: Models, per_sample: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, dict[str, Loss]]:
    """exp(-w) L with gradient for the student, and the weight's own loss exp(-w) sg(L) + w.

    Args:
        models: with the role ``time_weight``, or without: then the loss stays as it is.
        per_sample: (N,) losses L with gradient, at least 0.
        t, s: (N,) times on the host.
    """
    if TIME_WEIGHT not in models:
        return per_sample, {}
    at = per_sample.detach()
    w = models[TIME_WEIGHT].wrapped(like_states(t, at), like_states(s, at)).to(at.dtype)
    return torch.exp(-w.detach()) * per_sample, {TIME_WEIGHT: Loss(torch.exp(-w) * at + w)}
