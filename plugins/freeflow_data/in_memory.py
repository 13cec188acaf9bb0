"""Images that fit in memory, as a source."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_core.types import Condition
from freeflow_data.augmentations import AugmentationChain
from freeflow_data.image_source import ImageSource
from freeflow_data.ordering import Rows
from freeflow_data.records import Records


@dataclass(frozen=True)
class ImageSet(Records):
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

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        return len(self.images)

    def images_at(self, rows: Rows) -> Tensor:
        return self.images[torch.from_numpy(rows)]

    def take(self, rows: Rows) -> ImageSet:
        index = torch.from_numpy(rows)
        return ImageSet(self.images[index], None if self.labels is None else self.labels[index])


class InMemorySource(ImageSource):
    """Base of sources that hold all their images: they can also show all training images at once.

    Args:
        training: images to train on, at least one.
        held_out: images kept from training, or None.
        num_classes: number of classes; None for unlabelled images.
        seed: of the order, in [0, 2**63).
        augmentation: what is done to training images; None: nothing.
    """

    def __init__(
        self,
        training: ImageSet,
        held_out: ImageSet | None,
        num_classes: int | None,
        seed: int,
        augmentation: AugmentationChain | None = None,
    ) -> None:
        super().__init__(training, held_out, num_classes, seed, augmentation)
        self._images = training

    def training_images(self) -> tuple[Tensor, Condition]:
        return self._images.images, self._images.labels
