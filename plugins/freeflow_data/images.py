"""Images by number: what is wrong with them, the order they are seen in, and the sources that yield them."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import Source, block_starts
from freeflow_core.math.random import philox_words
from freeflow_core.types import Batch, Condition
from freeflow_data.augmentations import Augmentations
from freeflow_data.config import ImageOptions, OnError

_log = logging.getLogger("freeflow")
_SHOWN = 3
_LARGEST_FLOOR_BYTES = 2**30
_AT_ONCE = 64

Rows: TypeAlias = npt.NDArray[np.int64]


def keyed_permutation(seed: int, stream: str, size: int) -> Rows:
    """The permutation of ``range(size)`` that sorts one Philox word an element.

    Library shuffles may change between releases; raw counter-based words and a stable sort may not.
    """
    words = philox_words(seed, stream, np.arange(size), 1)[:, 0]
    return np.argsort(words, kind="stable")


@final
class EpochOrder:
    """Image number i, counted from the start of training, is row ``permutation(i // size)[i % size]``."""

    def __init__(self, size: int, seed: int) -> None:
        self._size = size
        self._seed = seed
        self._epoch = -1
        self._permutation: Rows = np.empty(0, dtype=np.int64)

    def rows(self, start: int, count: int) -> Rows:
        """(count,) rows of the images number ``start``, ``start + 1``, ...; may span any number of epochs."""
        parts = [np.empty(0, dtype=np.int64)]
        while count > 0:
            epoch, offset = divmod(start, self._size)
            if epoch != self._epoch:  # training moves forward, so one epoch is all that is worth keeping
                self._permutation = keyed_permutation(self._seed, f"epoch-{epoch}", self._size)
                self._epoch = epoch
            part = self._permutation[offset : offset + count]
            parts.append(part)
            start += len(part)
            count -= len(part)
        return np.concatenate(parts)


class IndexedSource(Source):
    """A source whose rows have numbers. Every epoch visits each row once, in an order of its own.

    Args:
        size: rows in an epoch, at least one.
        seed: of the order, in [0, 2**63).
        workers: threads that read batches ahead; 0: each batch is read when it is asked for.
    """

    def __init__(self, size: int, seed: int, workers: int = 0) -> None:
        if size < 1:
            raise ConfigError("A data source needs at least one training image, and none is left. Hold out fewer.")
        self.num_images = size
        self._size = size
        self._seed = seed
        self._workers = workers

    @abstractmethod
    def read(self, rows: Rows, numbers: Rows) -> Batch:
        """The batch of ``rows`` (N,), which are the images number ``numbers`` (N,) of the run.

        What is drawn for an image depends on the seed and its number alone. Called from several threads at once
        when there are workers.
        """

    def batches(self, start: int, batch_size: int, rank: int, world_size: int) -> Iterator[Batch]:
        order = EpochOrder(self._size, self._seed)
        places = (
            (order.rows(first, batch_size), np.arange(first, first + batch_size))
            for first in block_starts(start, batch_size, rank, world_size)
        )
        return self._read_ahead(places) if self._workers else (self.read(*place) for place in places)

    def _read_ahead(self, places: Iterator[tuple[Rows, Rows]]) -> Iterator[Batch]:
        """One batch a thread, handed on in order."""
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="freeflow-data")
        waiting: deque[Future[Batch]] = deque()
        try:
            for rows, numbers in places:
                waiting.append(pool.submit(self.read, rows, numbers))
                if len(waiting) > self._workers:
                    yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


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

    ``num_classes`` is None for unlabelled images; ``workers`` are threads that read batches ahead.
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


@final
class Problems:
    """Collects what cannot be used of ``where``, such as ``"The image folder photos"``, kind by kind."""

    def __init__(self, where: str, unit: str = "images") -> None:
        self.where = where
        self._unit = unit
        self._count = 0
        self._kinds: list[str] = []

    def add(self, kind: str, names: Iterable[str], count: int | None = None) -> None:
        """``names`` share one ``kind`` of problem, a phrase such as ``"without a label"``; each kind is given once.

        ``count`` says how many there are where the names describe all of them together.
        """
        listed = list(names)
        number = len(listed) if count is None else count
        if number:
            self._count += number
            more = f" and {len(listed) - _SHOWN:,} more" if len(listed) > _SHOWN else ""
            self._kinds.append(f"{kind}: {number:,} ({', '.join(listed[:_SHOWN])}{more})")

    def settle(self, on_error: OnError, total: int, advice: str) -> None:
        """Refuse what was found, or say on one line what is left out of the ``total``. Silent when nothing was found.

        Raises:
            ConfigError: something was found and is not to be skipped, or nothing would be left.
        """
        if not self._count:
            return
        kinds = "; ".join(self._kinds)
        found = f"{self.where}: {self._count:,} of {total:,} {self._unit} cannot be used: {kinds}."
        if self._count >= total:
            raise ConfigError(f"{found} Nothing is left. {advice}")
        if on_error == "refuse":
            raise ConfigError(f"{found} {advice} To leave them out, set on_error: skip.")
        _log.warning("%s They are left out.", found)
