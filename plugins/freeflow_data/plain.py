"""What needs no file and no network: the prior alone, scikit-learn's digits, and pixels as states."""

import itertools
from collections.abc import Iterator
from typing import final

import numpy as np
import torch
from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import Codec, Source
from freeflow_core.types import Batch, Condition
from freeflow_data.config import DigitsConfig, PixelsConfig, PriorConfig
from freeflow_data.images import Images, ImageSource


@final
class PriorSource(Source):
    """Batches that hold neither states nor conditions: noise and labels are drawn by the engine."""

    has_data = False

    def __init__(self, config: PriorConfig) -> None:
        """There is nothing to choose."""

    def batches(self, start: int, batch_size: int, rank: int, world_size: int) -> Iterator[Batch]:
        return itertools.repeat(Batch(None, None))

    def held_out(self) -> tuple[Tensor, Condition] | None:
        return None


@final
class DigitsSource(ImageSource):
    """1797 images (1, 8, 8) of the digits 0 to 9, held out by class (Alpaydin & Kaynak 1998, UCI 80)."""

    def __init__(self, config: DigitsConfig) -> None:
        """Raises ``ConfigError`` when ``held_out`` leaves a class without a training image."""
        super().__init__(*load_all_digits().split(config.held_out, config.split_seed), 10, config)


def load_all_digits() -> Images:
    """All 1797 images; grey values 0..16 become round(v * 255 / 16)."""
    from sklearn.datasets import load_digits  # a second of imports, which the prior does without

    bunch = load_digits()
    grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    return Images.in_memory(torch.from_numpy(grey[:, None]), torch.from_numpy(bunch.target.astype(np.int64)))


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
        return images.float().div_(127.5).sub_(1)

    def state_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, ...]:
        return image_shape

    def decode(self, x: Tensor) -> Tensor:
        """The nearest uint8 values, halves to even; states beyond [-1, 1] are clamped."""
        values = x.float().add(1).mul_(127.5)
        return values.round_().clamp_(0, 255).to(torch.uint8)

    def decode_with_gradient(self, x: Tensor) -> Tensor:
        return x.float()

    def portable(self) -> None:
        """States are images already."""
