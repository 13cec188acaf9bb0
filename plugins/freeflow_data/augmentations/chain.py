"""Augmentations one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from freeflow_core.math.random import PhiloxDraws
from freeflow_data.augmentations.base import Augmentation, Dice


@dataclass(frozen=True)
class Link:
    """An augmentation done to a ``probability`` share of the images; ``stream`` names its draws."""

    augmentation: Augmentation
    probability: float
    stream: str


@final
class AugmentationChain:
    """Applies augmentations in order, and rounds to grey values once, at the end.

    What is drawn for image number i of a run depends on the seed and i alone, not on the batch or the process; an
    image comes back under another number, and so with other draws, in every epoch.

    Args:
        links: in order, each with a stream of its own.
        seed: in [0, 2**63).
    """

    def __init__(self, links: Sequence[Link], seed: int) -> None:
        self._links = tuple(links)
        self._seed = seed

    def __call__(self, images: Tensor, number: Tensor) -> Tensor:
        """Augmented uint8 images (N, C, H, W); ``number`` int64 (N,) are their numbers. The input is left alone."""
        values = images.float()
        for link in self._links:
            dice = Dice(PhiloxDraws(self._seed, number), f"augment/{link.stream}")
            chosen = (dice.share("chosen") < link.probability).nonzero().flatten()
            if len(chosen):
                changed = link.augmentation.apply(values[chosen], dice.rows(chosen))
                values[chosen] = changed.clamp_(0, 255)  # each sees an image, not what the one before overshot
        return values.round_().to(torch.uint8)
