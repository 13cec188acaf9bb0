"""Images to states and back."""

from abc import abstractmethod

from torch import Tensor

from freeflow_core.interfaces.build import Buildable


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
