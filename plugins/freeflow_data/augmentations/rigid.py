"""Shift and rotation."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import final

import torch
from torch import Tensor

from freeflow_data.augmentations.base import Augmentation, Dice, places
from freeflow_data.augmentations.resample import resample
from freeflow_data.config import Padding

LARGEST_SHIFT = 0.25
"""At full strength, as a share of the side."""
LARGEST_ANGLE = math.pi / 2
"""At full strength, in radians."""


class Rigid(Augmentation):
    """Moves the image as a whole. Angles and shifts are uniform up to the largest times ``strength``."""

    def __init__(self, strength: float, padding: Padding) -> None:
        super().__init__(strength)
        self._padding: Padding = padding

    @abstractmethod
    def motion(self, height: int, width: int, dice: Dice) -> tuple[Tensor, Tensor, Tensor]:
        """Angle (N,) in radians, and shift right and down (N,) in pixels."""

    def apply(self, images: Tensor, dice: Dice) -> Tensor:
        height, width = images.shape[-2:]
        angle, right, down = self.motion(height, width, dice)
        cos, sin, right, down = (v.float()[:, None, None] for v in (angle.cos(), angle.sin(), right, down))
        # Each pixel of the result asks where it comes from: the inverse motion, about the centre.
        x = places(width)[None, None, :] - (width - 1) / 2 - right
        y = places(height)[None, :, None] - (height - 1) / 2 - down
        from_x = cos * x + sin * y + (width - 1) / 2
        from_y = cos * y - sin * x + (height - 1) / 2
        return resample(images, from_x, from_y, self._padding)


@final
class Shift(Rigid):
    """Moves by up to a quarter of the side, in both directions independently, at full strength."""

    def motion(self, height: int, width: int, dice: Dice) -> tuple[Tensor, Tensor, Tensor]:
        reach = LARGEST_SHIFT * self.strength
        right, down = reach * width * dice.sign("right"), reach * height * dice.sign("down")
        return torch.zeros_like(right), right, down


@final
class Rotation(Rigid):
    """Turns about the centre by up to 90 degrees, clockwise or not, at full strength."""

    def motion(self, height: int, width: int, dice: Dice) -> tuple[Tensor, Tensor, Tensor]:
        angle = LARGEST_ANGLE * self.strength * dice.sign("angle")
        return angle, torch.zeros_like(angle), torch.zeros_like(angle)
