"""Random changes to training images, one after the other, each a function of (seed, image number) alone."""

import math
from collections import Counter
from collections.abc import Callable
from typing import TypeAlias, final

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from freeflow_core.math.random import PhiloxDraws
from freeflow_data.config import AugmentationConfig, AugmentationName, ImageOptions, Padding

LARGEST_SHIFT = 0.25
"""At full strength, as a share of the side."""
LARGEST_ANGLE = math.pi / 2
"""At full strength, in radians."""

Uniform: TypeAlias = Callable[[str], Tensor]
"""(N,) numbers in (0, 1), one an image, from the stream of that name: float64, so that a library which computes a
cosine differently at the end of a vector cannot make an image depend on its place in the batch."""

Augmentation: TypeAlias = Callable[[Tensor, float, Uniform, Padding], Tensor]
"""Changed images from float images (N, C, H, W) of grey values 0 to 255, a strength in (0, 1], random numbers that do
not depend on the strength, and what moves in from outside the image."""


def flip(images: Tensor, strength: float, uniform: Uniform, padding: Padding) -> Tensor:
    """Mirrors left and right. There is no half a mirror image: ``strength`` is the share of images mirrored."""
    mirrored = uniform("side") < strength
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def shift(images: Tensor, strength: float, uniform: Uniform, padding: Padding) -> Tensor:
    """Moves by up to a quarter of the side, in both directions independently, at full strength."""
    height, width = images.shape[-2:]
    right = LARGEST_SHIFT * strength * width * (2 * uniform("right") - 1)
    down = LARGEST_SHIFT * strength * height * (2 * uniform("down") - 1)
    return _move(images, torch.zeros_like(right), right, down, padding)


def rotation(images: Tensor, strength: float, uniform: Uniform, padding: Padding) -> Tensor:
    """Turns about the centre by up to 90 degrees, clockwise or not, at full strength."""
    angle = LARGEST_ANGLE * strength * (2 * uniform("angle") - 1)
    return _move(images, angle, torch.zeros_like(angle), torch.zeros_like(angle), padding)


def _move(images: Tensor, angle: Tensor, right: Tensor, down: Tensor, padding: Padding) -> Tensor:
    """Turned clockwise by angles (N,), then moved by pixels (N,).

    Bicubic, because a bilinear look-up blurs, and several in a row blur more.
    """
    height, width = images.shape[-2:]
    cos, sin, right, down = (value.float()[:, None, None] for value in (angle.cos(), angle.sin(), right, down))
    # Each pixel of the result asks where it comes from: the inverse motion, about the centre.
    x = torch.arange(width, dtype=torch.float32)[None, None, :] - (width - 1) / 2 - right
    y = torch.arange(height, dtype=torch.float32)[None, :, None] - (height - 1) / 2 - down
    from_x = cos * x + sin * y + (width - 1) / 2
    from_y = cos * y - sin * x + (height - 1) / 2
    # grid_sample counts from -1 to 1 between the outer edges of the border pixels.
    grid = torch.stack([(2 * from_x + 1) / width - 1, (2 * from_y + 1) / height - 1], -1)
    mode = {"edge": "border", "reflect": "reflection", "black": "zeros"}[padding]
    return grid_sample(images, grid, mode="bicubic", padding_mode=mode, align_corners=False)


AUGMENTATIONS: dict[AugmentationName, Augmentation] = {"flip": flip, "shift": shift, "rotation": rotation}


@final
class Augmentations:
    """Those of the options, in order; grey values are rounded once, at the end.

    What is drawn for image number i of a run depends on the seed and i alone, not on the batch or the process; an
    image comes back under another number, and so with other draws, in every epoch.
    """

    def __init__(self, options: ImageOptions) -> None:
        self._seed = options.seed
        self._steps: list[tuple[str, float, AugmentationConfig]] = []
        seen: Counter[str] = Counter()
        for choice in options.augment:
            seen[choice.name] += 1
            strength = choice.strength * options.augment_strength
            if strength > 0 and choice.probability > 0:
                # By name and occurrence: taking one augmentation away leaves the draws of the others as they were.
                self._steps.append((f"augment/{choice.name}/{seen[choice.name]}", strength, choice))

    def __call__(self, images: Tensor, number: Tensor) -> Tensor:
        """Augmented uint8 images (N, C, H, W); ``number`` int64 (N,) are their numbers. The input is left alone."""
        if not self._steps:
            return images
        values = images.float()
        for stream, strength, choice in self._steps:
            share = PhiloxDraws(self._seed, number).uniform(f"{stream}/chosen")
            chosen = (share < choice.probability).nonzero().flatten()
            if len(chosen):
                uniform = _uniform(PhiloxDraws(self._seed, number[chosen]), stream)
                changed = AUGMENTATIONS[choice.name](values[chosen], strength, uniform, choice.padding)
                values[chosen] = changed.clamp_(0, 255)  # each sees an image, not what the one before overshot
        return values.round_().to(torch.uint8)


def _uniform(draws: PhiloxDraws, stream: str) -> Uniform:
    return lambda name: draws.uniform(f"{stream}/{name}")
