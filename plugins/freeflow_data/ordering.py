"""The order in which images are visited: one permutation an epoch, a pure function of the image number."""

from __future__ import annotations

from typing import TypeAlias, final

import numpy as np
import numpy.typing as npt

from freeflow_core.math.random import philox_words

Rows: TypeAlias = npt.NDArray[np.int64]


def keyed_permutation(seed: int, stream: str, size: int) -> Rows:
    """The permutation of ``range(size)`` that sorts one Philox word an element.

    Library shuffles may change between releases; raw counter-based words and a stable sort may not.
    """
    words = philox_words(seed, stream, np.arange(size), 1)[:, 0]
    return np.argsort(words, kind="stable")


@final
class EpochOrder:
    """Image number i, counted from the start of training, is row ``permutation(i // size)[i % size]``.

    Args:
        size: images in an epoch, at least 1.
        seed: in [0, 2**63).
    """

    def __init__(self, size: int, seed: int) -> None:
        if size < 1:
            raise ValueError(f"an epoch needs at least one image, got {size}")
        self.size = size
        self.seed = seed
        self._epoch = -1
        self._permutation: Rows = np.empty(0, dtype=np.int64)

    def rows(self, start: int, count: int) -> Rows:
        """(count,) rows of the images number ``start``, ``start + 1``, ...; may span any number of epochs."""
        parts = []
        while count > 0:
            epoch, offset = divmod(start, self.size)
            part = self._of_epoch(epoch)[offset : offset + count]
            parts.append(part)
            start += len(part)
            count -= len(part)
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def _of_epoch(self, epoch: int) -> Rows:
        if epoch != self._epoch:  # training moves forward, so one epoch is all that is worth keeping
            self._permutation = keyed_permutation(self.seed, f"epoch-{epoch}", self.size)
            self._epoch = epoch
        return self._permutation
