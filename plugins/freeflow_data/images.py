"""Images by row number, those held out of them, and the source that yields the rest."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_core.types import Batch, Condition
from freeflow_data.augmentations import Augmentations
from freeflow_data.config import ImageOptions
from freeflow_data.indexed import IndexedSource, Rows, keyed_permutation

_LARGEST_FLOOR_BYTES = 2**30
_AT_ONCE = 64


@final
@dataclass(frozen=True)
class Images:
    """M images of one shape, in memory, mapped, or decoded from files when they are asked for.

    Args:
        read: uint8 (N, C, H, W), a copy, of file or array rows (N,); called from several threads at once. Raises
            ``ConfigError`` naming what cannot be read.
        shape: (C, H, W).
        rows: (M,) which rows these images are.
        labels: int64 (M,) classes, or None for unlabelled images.
    """

    read: Callable[[Rows], Tensor]
    shape: tuple[int, int, int]
    rows: Rows
    labels: Tensor | None

    @classmethod
    def in_memory(cls, images: Tensor, labels: Tensor | None) -> Images:
        """All of uint8 ``images`` (M, C, H, W)."""
        channels, height, width = images.shape[1:]
        rows = np.arange(len(images))
        return cls(lambda chosen: images[torch.from_numpy(chosen)], (channels, height, width), rows, labels)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: Rows) -> Tensor:
        """uint8 (N, C, H, W) of those in the places ``chosen`` (N,)."""
        return self.read(self.rows[chosen])

    def take(self, chosen: Rows) -> Images:
        """Those in the places ``chosen``, in their order."""
        labels = None if self.labels is None else self.labels[torch.from_numpy(chosen)]
        return Images(self.read, self.shape, self.rows[chosen], labels)

    def split(self, num_held_out: int, seed: int) -> tuple[Images, Images | None]:
        """Images to train on and images to hold out, each class in proportion; unlabelled ones are one class.

        Raises:
            ConfigError: nothing, or nothing of a class, would be left to train on.
        """
        labels = np.zeros(len(self), dtype=np.int64) if self.labels is None else self.labels.numpy()
        kept, held = stratified_split(labels, num_held_out, seed)
        return self.take(kept), self.take(held) if len(held) else None


def stratified_split(labels: Rows, num_held_out: int, seed: int) -> tuple[Rows, Rows]:
    """Rows to train on and rows to hold out, both ascending, disjoint, together all of ``labels`` (M,).

    Exactly ``num_held_out`` rows are held out, and each class's share is within one row of proportional (largest
    remainders first). A class's rows are ranked by ``seed`` alone, so the choice depends on no library's shuffle.

    Raises:
        ConfigError: a class would be left without a training image.
    """
    classes, counts = np.unique(labels, return_counts=True)
    quotas, remainders = np.divmod(counts * num_held_out, len(labels))
    quotas[np.argsort(-remainders, kind="stable")[: num_held_out - int(quotas.sum())]] += 1
    if exhausted := [str(label) for label in classes[quotas >= counts]]:
        raise ConfigError(
            f"held_out={num_held_out} of {len(labels)} images leaves nothing to train on in class "
            f"{', '.join(exhausted[:10])}. Choose a smaller held_out; a third of the images is plenty."
        )
    held_out = np.zeros(len(labels), dtype=bool)
    for label, quota in zip(classes, quotas, strict=True):
        rows = np.flatnonzero(labels == label)
        held_out[rows[keyed_permutation(seed, f"held-out/{label}", len(rows))[:quota]]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


class ImageSource(IndexedSource):
    """Base of the sources of images: batches, held-out images and, where they are few enough, all training images.

    Held-out images and those that :meth:`training_images` shows are never augmented.

    Args:
        training: images to train on, at least one.
        held_out: images kept from training, or None.
        num_classes: number of classes; None for unlabelled images.
        options: order and augmentations.
        workers: threads that read batches ahead; 0: none.
    """

    def __init__(
        self,
        training: Images,
        held_out: Images | None,
        num_classes: int | None,
        options: ImageOptions,
        workers: int = 0,
    ) -> None:
        super().__init__(len(training), options.seed, workers)
        self._training = training
        self._held_out = held_out
        self._held_out_images: Tensor | None = None
        self._augment = Augmentations(options)
        self.image_shape = training.shape
        self.num_classes = num_classes

    def read(self, rows: Rows, numbers: Rows) -> Batch:
        images, labels = self._training[rows], self._training.labels
        condition = None if labels is None else labels[torch.from_numpy(rows)]
        return Batch(self._augment(images, torch.from_numpy(numbers)), condition)

    def held_out(self) -> tuple[Tensor, Condition] | None:
        if self._held_out is None:
            return None
        if self._held_out_images is None:
            self._held_out_images = self._everything(self._held_out)
        return self._held_out_images, self._held_out.labels

    def training_images(self) -> tuple[Tensor, Condition] | None:
        if len(self._training) * math.prod(self._training.shape) > _LARGEST_FLOOR_BYTES:
            return None
        return self._everything(self._training), self._training.labels

    def _everything(self, images: Images) -> Tensor:
        rows = np.arange(len(images))
        if not self._workers:
            return images[rows]
        with ThreadPoolExecutor(self._workers) as pool:
            return torch.cat(list(pool.map(images.__getitem__, np.array_split(rows, -(-len(rows) // _AT_ONCE)))))
