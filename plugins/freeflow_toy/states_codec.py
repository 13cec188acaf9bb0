"""States that need no coding."""

from __future__ import annotations

from typing import Self, final

import torch
from torch import Tensor

from freeflow_core.config import ComponentConfig
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import BuildContext, Codec

_HALF_RANGE = 127.5


@final
class StatesCodec(Codec):
    """What a source yields already are states: encoding passes them on, whatever their shape."""

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        return cls()

    def encode(self, images: Tensor) -> Tensor:
        """The float states (N, *D) given. Raises ``ConfigError`` for integers, which are images to be coded."""
        if not images.is_floating_point():
            raise ConfigError(
                f"The states codec passes float states on, got {images.dtype} {tuple(images.shape)}. uint8 images need "
                "codec: pixels."
            )
        return images

    def state_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, ...]:
        return image_shape

    def decode(self, x: Tensor) -> Tensor:
        """uint8 values for pictures, with [-1, 1] as 0..255; states beyond are clamped."""
        return x.float().add(1).mul_(_HALF_RANGE).round_().clamp_(0, 255).to(torch.uint8)
