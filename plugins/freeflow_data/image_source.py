"""A source of images, wherever they lie."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from freeflow_core.types import Batch, Condition
from freeflow_data.augmentations import AugmentationChain
from freeflow_data.indexed import IndexedSource
from freeflow_data.ordering import Rows
from freeflow_data.records import Records

_LARGEST_FLOOR_BYTES = 2**30
_AT_ONCE = 64


class ImageSource(IndexedSource):
    """Base of sources of images: batches, held-out images and, where they are few enough, all training images.

    Held-out images and those that :meth:`training_images` shows are never augmented.

    Args:
        training: images to train on, at least one.
        held_out: images kept from training, or None.
        num_classes: number of classes; None for unlabelled images.
        seed: of the order, in [0, 2**63).
        augmentation: what is done to training images; None: nothing.
        workers: threads that read batches ahead; 0: none.
    """

    def __init__(
        self,
        training: Records,
        held_out: Records | None,
        num_classes: int | None,
        seed: int,
        augmentation: AugmentationChain | None = None,
        workers: int = 0,
    ) -> None:
        super().__init__(len(training), seed, workers)
        self._training = training
        self._held_out = held_out
        self._held_out_images: Tensor | None = None
        self._augmentation = augmentation
        self.image_shape = training.image_shape
        self.num_classes = num_classes

    def read(self, rows: Rows, numbers: Rows) -> Batch:
        images, labels = self._training.images_at(rows), self._training.labels
        if self._augmentation is not None:
            images = self._augmentation(images, torch.from_numpy(numbers))
        return Batch(images, None if labels is None else labels[torch.from_numpy(rows)])

    def held_out(self) -> tuple[Tensor, Condition] | None:
        if self._held_out is None:
            return None
        if self._held_out_images is None:
            self._held_out_images = self._everything(self._held_out)
        return self._held_out_images, self._held_out.labels

    def training_images(self) -> tuple[Tensor, Condition] | None:
        size = len(self._training) * math.prod(self._training.image_shape)
        if size > _LARGEST_FLOOR_BYTES:
            return None
        return self._everything(self._training), self._training.labels

    def _everything(self, records: Records) -> Tensor:
        rows = np.arange(len(records))
        if not self._workers:
            return records.images_at(rows)
        with ThreadPoolExecutor(self._workers) as pool:
            return torch.cat(list(pool.map(records.images_at, np.array_split(rows, -(-len(rows) // _AT_ONCE)))))
