"""Energy distances between raw states: no network, for vectors and small images."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from freeflow_core.errors import ConfigError
from freeflow_metrics.config import EnergyDistanceConfig
from freeflow_metrics.distance import DistanceEvaluator, PointBuffer
from freeflow_metrics.features import FeatureNetwork

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


@final
class RawStates(FeatureNetwork):
    """Points are the states themselves, or uint8 images scaled to [-1, 1]."""

    def __init__(self, max_dimension: int) -> None:
        super().__init__(f"states/{max_dimension}", nn.Flatten())
        self._max_dimension = max_dimension

    def features(self, images: Tensor) -> Tensor:
        """(N, dim) float64. Raises ``ConfigError`` for states that are too large."""
        points: Tensor = self._network(images.detach().cpu().double())
        if points.shape[1] > self._max_dimension:
            raise ConfigError(
                f"The energy-distance evaluator compares raw states, and these have {points.shape[1]:,} entries each, "
                f"more than max_dimension={self._max_dimension:,}; distances between raw large images say little. Use "
                "the frechet or kernel evaluator, or raise max_dimension."
            )
        return points if images.dtype != torch.uint8 else points / 127.5 - 1


@final
class EnergyDistanceEvaluator(DistanceEvaluator[PointBuffer]):
    """``energy_data`` and ``energy_teacher``. Unbiased, about 0 between equal distributions."""

    def __init__(self, config: EnergyDistanceConfig) -> None:
        self._capacity = config.max_samples
        super().__init__("energy", RawStates(config.max_dimension), config.max_samples)

    def empty(self) -> PointBuffer:
        return PointBuffer(self._capacity)

    def distance(self, row: PointBuffer, reference: PointBuffer, what: str) -> float:
        return energy_distance(row.points(), reference.points())
