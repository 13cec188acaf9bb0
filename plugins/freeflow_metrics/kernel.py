"""Kernel distance between sets of features."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import numpy as np
import torch
from torch import Tensor

from freeflow_metrics import cleanfid_adapter


def kernel_distance(first: Tensor, second: Tensor, *, num_subsets: int, subset_size: int, seed: int) -> float:
    """Unbiased squared MMD with the kernel (x . y / F + 1)^3 (Binkowski et al. 2018, section 4), mean over subsets.

    Computed by clean-fid, on subsets that depend on ``seed`` alone. It can be slightly negative: unbiased.

    Args:
        first, second: features (N, F) and (M, F).
        num_subsets: subsets averaged over.
        subset_size: rows drawn from each, without replacement; at most min(N, M).
        seed: in [0, 2**32).

    Raises:
        ValueError: fewer than two rows on either side.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError(f"a kernel distance needs two samples on either side, got {len(first)} and {len(second)}")
    with _global_numpy_seed(seed):
        return cleanfid_adapter.kernel_distance(
            first.double().numpy(), second.double().numpy(), num_subsets, subset_size
        )


@contextmanager
def _global_numpy_seed(seed: int) -> Iterator[None]:
    """clean-fid draws from numpy's global generator: give it ours, and give the caller's back afterwards."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


@final
class FeatureBuffer:
    """The first ``capacity`` features of a stream, in order; later ones are dropped, so memory is bounded."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._parts: list[Tensor] = []
        self.count = 0

    def update(self, features: Tensor) -> None:
        """Take in features (N, F)."""
        kept = features[: self._capacity - self.count]
        if len(kept):
            self._parts.append(kept)
            self.count += len(kept)

    def features(self) -> Tensor:
        """(count, F). Raises ``ValueError`` when nothing was kept."""
        if not self._parts:
            raise ValueError("no features were kept")
        return torch.cat(self._parts)
