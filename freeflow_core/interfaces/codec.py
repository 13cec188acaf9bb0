"""Images to states and back, and how far images look apart."""

from abc import abstractmethod

from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces.build import Buildable
from freeflow_core.types import PortableNetwork


class Codec(Buildable):
    """Images are uint8 (N, 1|3, H, W); states are float (N, *D)."""

    def prepare(self) -> None:
        """Load what the other methods need; they do it themselves at their first call.

        Raises ``FreeflowError`` when that cannot be had: then a run trains without pictures and scores.
        """

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """States (N, *D) float32 of uint8 images."""

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and standard deviation (N, *D) float32 of the states of uint8 images, for a codec that draws them.

        ``freeflow encode`` stores both, so that training may draw an image's state anew each time. The deviation is
        None where an image has one state.
        """
        return self.encode(images), None

    def state_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, ...] | None:
        """*D of the states of images (C, H, W), told without encoding one; None: unknown."""
        return None

    @abstractmethod
    def decode(self, x: Tensor) -> Tensor:
        """uint8 images of states (N, *D)."""

    def decode_with_gradient(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) of the states as floats, [-1, 1] being black to white, neither rounded nor clamped.

        For losses on images: gradients flow to ``x``. Raises ``ConfigError`` where states are no images.
        """
        raise ConfigError(f"{type(self).__name__} decodes without gradient, so no loss can look at its images.")

    def portable(self) -> PortableNetwork | None:
        """The decoder for a diffusers pipeline; None where the states are images in [-1, 1] themselves.

        Its ``decode(states / scaling_factor + shift_factor, return_dict=False)`` gives ``(images,)`` in [-1, 1], the
        factors being of its ``config``, by default 1 and 0.

        Raises ``ConfigError`` for a codec without such a form, and as :meth:`prepare` does.
        """
        raise ConfigError(f"The codec {type(self).__name__} has no form that diffusers loads.")


class Distance(Buildable):
    """A perceptual distance for losses, on the device of its :class:`freeflow_core.interfaces.BuildContext`."""

    @abstractmethod
    def between(self, images: Tensor, others: Tensor) -> Tensor:
        """(N,) float distances of images (N, C, H, W), floats in [-1, 1]: 0 where they are equal, else above 0.

        Gradients flow to both. Raises ``ConfigError`` for images it was not made for.
        """
