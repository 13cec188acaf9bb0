"""Per-pixel standard deviation within each class, streamed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional

_HALF_RANGE = 127.5  # pixel values per unit of the range [-1, 1]


@dataclass
class _Sums:
    count: int
    first: Tensor
    second: Tensor


@final
class ClassSpread:
    """Standard deviation over the samples of a class, pixel by pixel, then averaged over pixels.

    Sums run in float64 over whole and half numbers, so for images that are not reduced they are exact whatever the
    batches, and no digits cancel.

    Args:
        max_side: images larger than this are area-averaged to it first.
    """

    def __init__(self, max_side: int) -> None:
        self._max_side = max_side
        self._sums: dict[int, _Sums] = {}

    def update(self, images: Tensor, labels: Tensor | None) -> None:
        """Take in uint8 images (N, C, H, W) and their labels (N,), or None for one class in all."""
        pixels = self._reduced(images).flatten(1) - _HALF_RANGE
        rows = torch.zeros(len(pixels), dtype=torch.int64) if labels is None else labels
        classes, place = torch.unique(rows, return_inverse=True)
        zeros = torch.zeros(len(classes), pixels.shape[1], dtype=torch.float64)
        first, second = zeros.index_add(0, place, pixels), zeros.index_add(0, place, pixels.square())
        counts = place.bincount(minlength=len(classes))
        for i, label in enumerate(classes.tolist()):
            sums = self._sums.setdefault(label, _Sums(0, torch.zeros_like(first[i]), torch.zeros_like(first[i])))
            sums.count += int(counts[i])
            sums.first += first[i]
            sums.second += second[i]

    def per_class(self) -> dict[int, float]:
        """By label, in pixel units of the range [-1, 1]; classes with fewer than two samples are left out."""
        return {label: _spread(sums) for label, sums in sorted(self._sums.items()) if sums.count > 1}

    def _reduced(self, images: Tensor) -> Tensor:
        pixels = images.detach().cpu().double()
        height, width = pixels.shape[-2:]
        if max(height, width) <= self._max_side:
            return pixels
        return functional.adaptive_avg_pool2d(pixels, (min(height, self._max_side), min(width, self._max_side)))


def _spread(sums: _Sums) -> float:
    variance = (sums.second - sums.first.square() / sums.count) / (sums.count - 1)
    return float(variance.clamp_min(0).sqrt().mean()) / _HALF_RANGE
