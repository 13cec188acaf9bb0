"""Mean and covariance of streamed features."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor


@final
class RunningMoments:
    """Mean and covariance in float64, one batch at a time, whatever the batches.

    Each batch is centred by its own mean and then merged (Chan, Golub & LeVeque 1983, eq. 2.1), so that no large sums
    are subtracted from each other, as raw second moments would.

    Args:
        dim: number of features F.
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64)

    def update(self, features: Tensor) -> None:
        """Take in features (N, F)."""
        if len(features) == 0:
            return
        features = features.detach().cpu().double()
        mean = features.mean(0)
        centred = features - mean
        self._merge(len(features), mean, centred.T @ centred)

    def merge(self, other: RunningMoments) -> None:
        """Take in what another has seen."""
        if other.count:
            self._merge(other.count, other.mean, other._scatter)

    @property
    def covariance(self) -> Tensor:
        """(F, F) unbiased covariance. Raises ``ValueError`` with fewer than two samples."""
        if self.count < 2:
            raise ValueError(f"a covariance needs two samples, got {self.count}")
        return self._scatter / (self.count - 1)

    def _merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        shift = mean - self.mean
        self._scatter += scatter + torch.outer(shift, shift) * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total
