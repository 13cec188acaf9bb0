"""Averages of weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def ema_decay(images: int, batch_size: int, halflife_images: float, rampup_ratio: float | None) -> float:
    """Decay of one step after ``images`` images, of ``batch_size`` each (Karras et al. 2022, EDM, training loop)."""
    halflife = halflife_images if rampup_ratio is None else min(halflife_images, images * rampup_ratio)
    return 0.5 ** (batch_size / max(halflife, 1e-8))


@torch.no_grad()
def update_average(average: Sequence[Tensor], weights: Sequence[Tensor], step: Tensor) -> None:
    """average += step * (weights - average), all tensors at once.

    ``step`` is 0-d on the device: 1 - decay, or 0 where the update was skipped.
    """
    if step.device.type == "cpu":  # reading a number costs no sync here, and saves a temporary of the weights' size
        torch._foreach_lerp_(list(average), list(weights), step.item())
        return
    difference = torch._foreach_sub(list(weights), list(average))
    torch._foreach_mul_(difference, step)
    torch._foreach_add_(list(average), difference)
