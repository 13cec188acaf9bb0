"""What an augmentation is, and where its randomness comes from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from freeflow_core.types import Draws


@dataclass(frozen=True)
class Dice:
    """An augmentation's own random numbers, one row an image; each name is a stream of its own.

    Numbers are float64, and functions of them are best taken before rounding to float32: then a library that computes
    a cosine differently at the end of a vector cannot make an image depend on its place in the batch.
    """

    draws: Draws
    prefix: str

    def share(self, name: str) -> Tensor:
        """(N,) uniform in (0, 1)."""
        return self.draws.uniform(f"{self.prefix}/{name}")

    def sign(self, name: str) -> Tensor:
        """(N,) uniform in (-1, 1)."""
        return 2 * self.draws.uniform(f"{self.prefix}/{name}") - 1

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """(N, *shape) standard normal, float32."""
        return self.draws.noise(f"{self.prefix}/{name}", shape)

    def rows(self, rows: Tensor) -> Dice:
        """The dice of the chosen images."""
        return Dice(self.draws.rows(rows), self.prefix)


class Augmentation(ABC):
    """Changes images by a random amount whose size grows with ``strength``, in (0, 1].

    The draws do not depend on the strength, so that a stronger augmentation does more of the same to each image.
    Arithmetic is row by row: what becomes of an image does not depend on its neighbours in the batch.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength

    @abstractmethod
    def apply(self, images: Tensor, dice: Dice) -> Tensor:
        """Changed images, float32 (N, C, H, W); grey values 0 to 255 come in, any may go out."""


def column(values: Tensor) -> Tensor:
    """(N,) as float32 (N, 1, 1, 1), to meet images."""
    return values.float()[:, None, None, None]


def places(size: int) -> Tensor:
    """Pixel numbers 0 to ``size - 1``, float32."""
    return torch.arange(size, dtype=torch.float32)
