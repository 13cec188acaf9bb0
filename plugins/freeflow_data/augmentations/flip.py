"""Mirror images."""

from __future__ import annotations

from typing import final

from torch import Tensor

from freeflow_data.augmentations.base import Augmentation, Dice


@final
class Flip(Augmentation):
    """Mirrors left and right. There is no half a mirror image: ``strength`` is the share of images mirrored."""

    def apply(self, images: Tensor, dice: Dice) -> Tensor:
        mirrored = (dice.share("side") < self.strength).nonzero().flatten()
        flipped = images.clone()
        flipped[mirrored] = images[mirrored].flip(-1)
        return flipped
