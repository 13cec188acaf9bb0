"""Elastic deformation."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from freeflow_data.augmentations.base import Augmentation, Dice, places
from freeflow_data.augmentations.resample import resample
from freeflow_data.config import Padding

LARGEST_DISPLACEMENT = 0.15
"""Standard deviation of a control point's move at full strength, as a share of the side."""
CONTROL_POINTS = 6
"""A side; the outermost lie beyond the image."""


@final
class Elastic(Augmentation):
    """Pulls the image out of shape by a smooth random field (Simard, Steinkraus & Platt 2003, section 2).

    The field is a cubic B-spline over a lattice of independent normal moves; at full strength a lattice point moves by
    15 % of the side (standard deviation), the image between them by about half as much.
    """

    def __init__(self, strength: float, padding: Padding) -> None:
        super().__init__(strength)
        self._padding: Padding = padding

    def apply(self, images: Tensor, dice: Dice) -> Tensor:
        height, width = images.shape[-2:]
        moves = LARGEST_DISPLACEMENT * self.strength * dice.normal("moves", (2, CONTROL_POINTS, CONTROL_POINTS))
        from_x = places(width)[None, None, :] + smooth_field(moves[:, 0] * width, height, width)
        from_y = places(height)[None, :, None] + smooth_field(moves[:, 1] * height, height, width)
        return resample(images, from_x, from_y, self._padding)


def smooth_field(lattice: Tensor, height: int, width: int) -> Tensor:
    """The cubic B-spline surface (N, H, W) of a ``lattice`` (N, K, K), whose points stand evenly over the image.

    Sums run in a fixed order, so that a row's bits do not depend on the batch.
    """
    rows, columns = spline_weights(height, lattice.shape[1]), spline_weights(width, lattice.shape[2])
    bent = torch.zeros(len(lattice), height, lattice.shape[2])
    for k, weight in enumerate(rows):
        bent = bent + weight[None, :, None] * lattice[:, k, None, :]
    field = torch.zeros(len(lattice), height, width)
    for k, weight in enumerate(columns):
        field = field + weight[None, None, :] * bent[:, :, k, None]
    return field


def spline_weights(size: int, points: int) -> Tensor:
    """(points, size): how much each control point counts at each pixel; every column sums to 1."""
    # Three of the points - 1 gaps lie outside, so that every pixel is between four control points.
    place = 1 + (places(size) + 0.5) / size * (points - 3)
    distance = (place[None] - places(points)[:, None]).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp(min=0) ** 3 / 6
    return torch.where(distance < 1, near, far)
