"""Energy distance between two sets of points."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK_ELEMENTS = 2**24
"""Entries of the largest block of differences held at once: 128 MiB of float64."""


def energy_distance(first: Tensor, second: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| with Euclidean distances (Székely & Rizzo 2013, eq. 1.2; no square root).

    Unbiased: pairs of a sample with itself are left out, so the distance of equal distributions is 0 in the mean and
    may come out slightly negative. It is 0 in the limit only for equal distributions, and needs no network. float64
    throughout; memory is bounded by working block by block.

    Args:
        first, second: (N, *D) and (M, *D), flattened to points.

    Raises:
        ValueError: fewer than two points on either side, or points of different dimension.
    """
    first, second = first.detach().double().flatten(1), second.detach().double().flatten(1)
    if min(len(first), len(second)) < 2:
        raise ValueError(f"an energy distance needs two points on either side, got {len(first)} and {len(second)}")
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"points of {first.shape[1]} and {second.shape[1]} entries cannot be compared")
    across = _distance_sum(first, second) / (len(first) * len(second))
    return 2 * across - _mean_distance_within(first) - _mean_distance_within(second)


def _mean_distance_within(points: Tensor) -> float:
    """E|X - X'| over distinct pairs: the diagonal adds 0 to the sum and is not counted."""
    return _distance_sum(points, points) / (len(points) * (len(points) - 1))


def _distance_sum(first: Tensor, second: Tensor) -> float:
    # By differences, not by |x|^2 + |y|^2 - 2 x.y, which keeps half the digits of a small distance.
    rows = max(1, _BLOCK_ELEMENTS // len(second))
    total = 0.0
    for block in torch.split(first, rows):
        distances = torch.cdist(block, second, compute_mode="donot_use_mm_for_euclid_dist")
        total += float(distances.sum())
    return total
