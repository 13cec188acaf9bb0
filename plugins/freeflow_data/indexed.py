"""Sources whose rows have numbers: the same rows in the same order however they are split, and wherever resumed."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import Source
from freeflow_core.types import Batch
from freeflow_data.ordering import EpochOrder, Rows


class IndexedSource(Source):
    """Image number i of a run is the same row whatever the batch size, the number of processes, or an interruption.

    Every epoch visits each row once, in an order of its own.

    Args:
        size: rows in an epoch, at least one.
        seed: of the order, in [0, 2**63).
        workers: threads that read batches ahead; 0: each batch is read when it is asked for.
    """

    def __init__(self, size: int, seed: int, workers: int = 0) -> None:
        if size < 1:
            raise ConfigError("A data source needs at least one training image, and none is left. Hold out fewer.")
        self.num_images = size
        self._seed = seed
        self._workers = workers

    @abstractmethod
    def read(self, rows: Rows, numbers: Rows) -> Batch:
        """The batch of ``rows`` (N,), which are the images number ``numbers`` (N,) of the run.

        What is drawn for an image depends on the seed and its number alone. Called from several threads at once
        when there are workers.
        """

    def batches(self, start: int, batch_size: int, rank: int, world_size: int) -> Iterator[Batch]:
        """As the interface says. Raises ``ValueError`` for a place no process can have."""
        if start < 0 or batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(
                "batches needs start >= 0, batch_size >= 1 and 0 <= rank < world_size, "
                f"got {start}, {batch_size}, {rank}, {world_size}"
            )
        places = self._places(start + rank * batch_size, batch_size, world_size * batch_size)
        return self._read_ahead(places) if self._workers else (self.read(*place) for place in places)

    def _places(self, start: int, batch_size: int, stride: int) -> Iterator[tuple[Rows, Rows]]:
        assert self.num_images is not None
        order = EpochOrder(self.num_images, self._seed)
        while True:
            yield order.rows(start, batch_size), np.arange(start, start + batch_size)
            start += stride

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
