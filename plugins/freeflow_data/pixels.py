"""Pixels as states."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import Codec
from freeflow_data.config import PixelsConfig

_HALF_RANGE = 127.5


@final
class PixelCodec(Codec):
    """x = value / 127.5 - 1, so that 0..255 fills [-1, 1]; decoding an encoded image gives it back exactly."""

    def __init__(self, config: PixelsConfig) -> None:
        """There is nothing to choose."""

    def encode(self, images: Tensor) -> Tensor:
        """States (N, C, H, W) float32 in [-1, 1]. Raises ``ConfigError`` for anything but uint8 images."""
        if images.dtype != torch.uint8:
            raise ConfigError(
                f"The pixels codec encodes uint8 images, got {images.dtype} {tuple(images.shape)}. "
                "Latents need the codec they were made with; float images must be scaled to 0..255 uint8 first."
            )
        return images.float().div_(_HALF_RANGE).sub_(1)

    def state_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, ...]:
        return image_shape

    def decode(self, x: Tensor) -> Tensor:
        """The nearest uint8 values, halves to even; states beyond [-1, 1] are clamped."""
        values = x.float().add(1).mul_(_HALF_RANGE)
        return values.round_().clamp_(0, 255).to(torch.uint8)
