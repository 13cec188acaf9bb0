"""Kernel distances between sets of features."""

from __future__ import annotations

from typing import final

import numpy as np
from torch import Tensor

from freeflow_core.torchvision_ops import ensure_torchvision_ops
from freeflow_metrics.config import KernelConfig
from freeflow_metrics.distance import DistanceEvaluator, PointBuffer
from freeflow_metrics.inception import build_features


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
    ensure_torchvision_ops()
    from cleanfid import fid

    points = first.double().numpy(), second.double().numpy()
    state = np.random.get_state()  # it draws from numpy's global generator: the caller's comes back afterwards
    np.random.seed(seed)
    try:
        return float(fid.kernel_distance(*points, num_subsets=num_subsets, max_subset_size=subset_size))
    finally:
        np.random.set_state(state)


@final
class KernelEvaluator(DistanceEvaluator[PointBuffer]):
    """``kd_data`` and ``kd_teacher``; with Inception features ``kid_data`` and ``kid_teacher``.

    Unbiased, so usable where samples are too few for the Fréchet distance; about 0 between equal distributions.
    """

    def __init__(self, config: KernelConfig) -> None:
        self._config = config
        network = build_features(config)
        super().__init__(f"k{network.letters}", network, config.max_samples)

    def empty(self) -> PointBuffer:
        return PointBuffer(self._config.max_samples)

    def distance(self, row: PointBuffer, reference: PointBuffer, what: str) -> float:
        options = {name: getattr(self._config, name) for name in ("num_subsets", "subset_size", "seed")}
        return kernel_distance(reference.points(), row.points(), **options)
