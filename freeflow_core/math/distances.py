"""Distances between sets of points, without any network."""

import torch
from torch import Tensor

from freeflow_core.errors import ConfigError

_BLOCK_ELEMENTS = 2**19
"""Entries of the largest block of differences held at once: 4 MiB of float64, which a cache holds."""


def energy_distance(first: Tensor, second: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| with Euclidean distances (Székely & Rizzo 2013, eq. 1.2; no square root).

    Unbiased: pairs of a sample with itself are left out, so the distance of equal distributions is 0 in the mean and
    may come out slightly negative. It is 0 in the limit only for equal distributions, and needs no network. float64
    throughout; memory is bounded by working block by block.

    (N, *D) and (M, *D) are flattened to points.

    Raises:
        ValueError: fewer than two points on either side.
        ConfigError: points of different dimension.
    """
    first, second = first.detach().double().flatten(1), second.detach().double().flatten(1)
    if min(len(first), len(second)) < 2:
        raise ValueError(f"an energy distance needs two points on either side, got {len(first)} and {len(second)}")
    if first.shape[1] != second.shape[1]:
        raise ConfigError(
            f"The energy distance cannot compare samples of {first.shape[1]} entries with others of {second.shape[1]}. "
            "Choose a reference of the samples' own shape."
        )
    across = _distance_sum(first, second) / (len(first) * len(second))
    within = (_distance_sum(x, x) / (len(x) * (len(x) - 1)) for x in (first, second))  # the diagonal adds 0
    return 2 * across - sum(within)


def _distance_sum(first: Tensor, second: Tensor) -> float:
    # By differences, not by |x|^2 + |y|^2 - 2 x.y, which keeps half the digits of a small distance.
    blocks = torch.split(first, max(1, _BLOCK_ELEMENTS // len(second)))
    return sum(float(torch.cdist(x, second, compute_mode="donot_use_mm_for_euclid_dist").sum()) for x in blocks)
