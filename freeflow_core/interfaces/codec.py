"""Images to states and back."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from freeflow_core.interfaces.build import Buildable


class Codec(Buildable):
    """Images are uint8 (N, 1|3, H, W); states are float (N, *D)."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """States (N, *D) float32 of uint8 images."""

    @abstractmethod
    def decode(self, x: Tensor) -> Tensor:
        """uint8 images of states (N, *D)."""
