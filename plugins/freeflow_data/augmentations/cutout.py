"""Cutout."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from freeflow_data.augmentations.base import Augmentation, Dice, column, places

LARGEST_SIDE = 0.5
"""Of the hole at full strength, as a share of the image's side."""
_MID_GREY = 127.5


@final
class Cutout(Augmentation):
    """Covers a rectangle with mid-grey (DeVries & Taylor 2017, arXiv 1708.04552).

    It lies anywhere inside the image; its sides are half the image's at full strength.
    """

    def apply(self, images: Tensor, dice: Dice) -> Tensor:
        height, width = images.shape[-2:]
        down = _covered(height, self.strength, dice.share("down"))[:, None, :, None]
        right = _covered(width, self.strength, dice.share("right"))[:, None, None, :]
        return torch.where(down & right, column(torch.full((len(images),), _MID_GREY)), images)


def _covered(size: int, strength: float, share: Tensor) -> Tensor:
    """(N, size) True where the hole is."""
    side = round(LARGEST_SIDE * strength * size)
    first = (share * (size - side + 1)).floor().float()[:, None]
    return (places(size) >= first) & (places(size) < first + side)
