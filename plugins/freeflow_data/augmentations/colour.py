"""Brightness, contrast, saturation and hue."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from freeflow_data.augmentations.base import Augmentation, Dice, column

LARGEST_BRIGHTNESS = 0.5 * 255
"""Added or taken away at full strength."""
LARGEST_CONTRAST = math.log(3)
"""Logarithm of the factor about mid-grey at full strength; of the factor of the saturation too."""
LARGEST_HUE = math.pi
"""Radians around the grey axis at full strength."""
_MID_GREY = 127.5


@final
class Colour(Augmentation):
    """Changes brightness and contrast, and of colour images saturation and hue, each up to its largest times strength.

    Contrast stretches about mid-grey and not about the image's mean. Hue turns the colour about the grey axis, which
    keeps the sum of the channels.
    """

    def apply(self, images: Tensor, dice: Dice) -> Tensor:
        if images.shape[1] == 3:
            images = self._tint(images, dice)
        contrast = torch.exp(LARGEST_CONTRAST * self.strength * dice.sign("contrast"))
        brightness = LARGEST_BRIGHTNESS * self.strength * dice.sign("brightness")
        return (images - _MID_GREY) * column(contrast) + column(_MID_GREY + brightness)

    def _tint(self, images: Tensor, dice: Dice) -> Tensor:
        saturation = torch.exp(LARGEST_CONTRAST * self.strength * dice.sign("saturation"))
        angle = LARGEST_HUE * self.strength * dice.sign("hue")
        cos, sin = saturation * angle.cos(), saturation * angle.sin() / math.sqrt(3)
        cos, sin = cos.float()[:, None, None], sin.float()[:, None, None]
        red, green, blue = images.unbind(1)
        grey = (red + green + blue) / 3
        # The part across the grey axis turns: a rotation by Rodrigues' formula about (1, 1, 1) / sqrt 3.
        turned = (
            grey + cos * (red - grey) + sin * (blue - green),
            grey + cos * (green - grey) + sin * (red - blue),
            grey + cos * (blue - grey) + sin * (green - red),
        )
        return torch.stack(turned, 1)
