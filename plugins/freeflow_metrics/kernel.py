"""Kernel distances between sets of features."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import numpy as np
from torch import Tensor

from freeflow_metrics import inception
from freeflow_metrics.config import KernelConfig
from freeflow_metrics.distance import DistanceEvaluator, PointBuffer
from freeflow_metrics.feature_choice import build_features


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
        return inception.kernel_distance(first.double().numpy(), second.double().numpy(), num_subsets, subset_size)


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
class KernelEvaluator(DistanceEvaluator[PointBuffer]):
    """``kd_data`` and ``kd_teacher``; with Inception features ``kid_data`` and ``kid_teacher``.

    Unbiased, so usable where samples are too few for the Fréchet distance; about 0 between equal distributions.
    """

    def __init__(self, config: KernelConfig) -> None:
        """Raises ``ConfigError`` when Inception cannot be had."""
        self._config = config
        network = build_features(config)
        super().__init__(f"k{network.letters}", network, config.max_samples)

    def empty(self) -> PointBuffer:
        return PointBuffer(self._config.max_samples)

    def distance(self, row: PointBuffer, reference: PointBuffer, what: str) -> float:
        return kernel_distance(
            reference.points(),
            row.points(),
            num_subsets=self._config.num_subsets,
            subset_size=self._config.subset_size,
            seed=self._config.seed,
        )
