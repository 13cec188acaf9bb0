"""Images that fit in memory, as a source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import Source
from freeflow_core.types import Batch, Condition
from freeflow_data.ordering import EpochOrder, Rows


@dataclass(frozen=True)
class ImageSet:
    """``images`` uint8 (M, C, H, W) and their ``labels`` int64 (M,), or None for unlabelled images.

    Raises ``ConfigError`` for other types and shapes.
    """

    images: Tensor
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[1] not in (1, 3):
            raise ConfigError(
                f"Images must be uint8 (M, 1 or 3, H, W), got {self.images.dtype} {tuple(self.images.shape)}. "
                "Scale grey values to 0..255 and put the channels second."
            )
        labels = self.labels
        if labels is not None and (labels.dtype != torch.int64 or labels.shape != self.images.shape[:1]):
            raise ConfigError(
                f"Labels must be int64 ({len(self.images)},), one for each image, got {labels.dtype} "
                f"{tuple(labels.shape)}. Give the class index of every image, or no labels at all."
            )

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: Rows) -> ImageSet:
        """The chosen rows, in their order."""
        index = torch.from_numpy(rows)
        return ImageSet(self.images[index], None if self.labels is None else self.labels[index])


class InMemorySource(Source):
    """Base of sources that hold all their images: batches, held-out images and training images.

    Image number i of a run is the same row whatever the batch size, the number of processes, or where the run was
    interrupted; every epoch visits each training image once, in an order of its own.

    Args:
        training: images to train on, at least one.
        held_out: images kept from training, or None.
        num_classes: number of classes; None for unlabelled images.
        seed: of the order, in [0, 2**63).
    """

    def __init__(self, training: ImageSet, held_out: ImageSet | None, num_classes: int | None, seed: int) -> None:
        if not len(training):
            raise ConfigError("A data source needs at least one training image, and none is left. Hold out fewer.")
        self._training = training
        self._held_out = held_out
        self._seed = seed
        channels, height, width = training.images.shape[1:]
        self.image_shape = (channels, height, width)
        self.num_classes = num_classes

    def batches(self, start: int, batch_size: int, rank: int, world_size: int) -> Iterator[Batch]:
        """As the interface says. Raises ``ValueError`` for a place no process can have."""
        if start < 0 or batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(
                "batches needs start >= 0, batch_size >= 1 and 0 <= rank < world_size, "
                f"got {start}, {batch_size}, {rank}, {world_size}"
            )
        return self._blocks(start + rank * batch_size, batch_size, world_size * batch_size)

    def _blocks(self, start: int, batch_size: int, stride: int) -> Iterator[Batch]:
        order = EpochOrder(len(self._training), self._seed)
        while True:
            rows = self._training.take(order.rows(start, batch_size))
            yield Batch(rows.images, rows.labels)
            start += stride

    def held_out(self) -> tuple[Tensor, Condition] | None:
        return None if self._held_out is None else (self._held_out.images, self._held_out.labels)

    def training_images(self) -> tuple[Tensor, Condition]:
        return self._training.images, self._training.labels
