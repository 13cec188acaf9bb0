"""Image number i of a run: the same row whatever the batch size, the number of processes, or an interruption."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias, final

import numpy as np
import numpy.typing as npt

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import Source, block_starts
from freeflow_core.math.random import philox_words
from freeflow_core.types import Batch

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
