"""Where batches come from."""

import itertools
from abc import abstractmethod
from collections.abc import Iterator

from torch import Tensor

from freeflow_core.interfaces.build import Buildable
from freeflow_core.types import Batch, Condition


def block_starts(start: int, batch_size: int, rank: int, world_size: int) -> Iterator[int]:
    """The number of the first image of each of a process's batches, endless: what :meth:`Source.batches` asks for.

    Raises ``ValueError`` for a place no process can have.
    """
    if start < 0 or batch_size < 1 or not 0 <= rank < world_size:
        raise ValueError(
            "batches needs start >= 0, batch_size >= 1 and 0 <= rank < world_size, "
            f"got {start}, {batch_size}, {rank}, {world_size}"
        )
    return itertools.count(start + rank * batch_size, world_size * batch_size)


class Source(Buildable):
    """Yields training batches, and held-out images to compare with.

    Attributes:
        has_data: False for the prior: its batches hold neither states nor conditions.
        encoded_by: name of the codec whose states its batches already hold, so that the engine leaves them as they are
            and refuses another codec; None for images, which the engine encodes.
        num_images: training images in an epoch, each of which ``batches(0, ...)`` visits once before it visits one
            again; None where there is no such number.
        image_shape: (C, H, W) of its images, or of its states when they are encoded; or None.
        num_classes: number of classes, or None.
    """

    has_data: bool = True
    encoded_by: str | None = None
    num_images: int | None = None
    image_shape: tuple[int, int, int] | None = None
    num_classes: int | None = None

    @abstractmethod
    def batches(self, start: int, batch_size: int, rank: int, world_size: int) -> Iterator[Batch]:
        """Endless batches from image number ``start`` on; row r of a global batch goes to one process only.

        ``batch_size`` is this process's micro-batch; consecutive items of rank k of n are the k-th, (k+n)-th, ...
        blocks of ``batch_size`` rows, so that the same images are seen however they are split. When ``has_data``,
        states are uint8 images (N, C, H, W), or float states (N, *D) where ``encoded_by`` names a codec.
        """

    @abstractmethod
    def held_out(self) -> tuple[Tensor, Condition] | None:
        """All held-out images, uint8 (M, C, H, W), and their labels; None without any."""

    def training_images(self) -> tuple[Tensor, Condition] | None:
        """All training images where they fit in memory, for the real-data floor; None otherwise."""
        return None
