"""Patches, positions, labels and scalars as vectors of the network's width."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn

NUM_FEATURES = 256
_MAX_PERIOD = 10_000.0


@final
class PatchEmbedder(nn.Module):
    """Non-overlapping patches of states (N, C, H, W) as tokens (N, T, width), row by row."""

    def __init__(self, channels: int, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.proj(x)
        return tokens.flatten(2).transpose(1, 2)


@final
class LabelEmbedder(nn.Module):
    """Rows of a table for labels (N,); the row after the last class, where there is one, is the null class."""

    def __init__(self, num_classes: int, null_class: bool, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + int(null_class), width)

    def forward(self, labels: Tensor) -> Tensor:
        device = self.embedding_table.weight.device
        rows: Tensor = self.embedding_table(labels.to(device, non_blocking=True))
        return rows


@final
class ScalarEmbedder(nn.Module):
    """A number per sample (N,), on any device, as (N, width): sinusoidal features and a two-layer MLP.

    The number enters as it is, without the factor 1000 of discrete-time models: the highest frequency is 1 radian, so
    the result varies slowly enough for finite differences (and float32) to resolve. It runs without autocast for the
    same reason, at a cost that is N rows rather than N T tokens.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(NUM_FEATURES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, values: Tensor) -> Tensor:
        weight = next(self.parameters())
        dtype = torch.float64 if weight.dtype is torch.float64 else torch.float32
        values = values.to(device=weight.device, dtype=dtype, non_blocking=True)
        with torch.autocast(weight.device.type, enabled=False):
            embedded: Tensor = self.mlp(sinusoidal_features(values).to(weight.dtype))
        return embedded


def sinusoidal_features(values: Tensor, num_features: int = NUM_FEATURES) -> Tensor:
    """(N, num_features) of ``values`` v (N,): cos, then sin, of v exp(-ln(10000) i / half), in their dtype."""
    half = num_features // 2
    index = torch.arange(half, device=values.device, dtype=values.dtype)
    angles = torch.outer(values, torch.exp(-math.log(_MAX_PERIOD) / half * index))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def position_embedding(rows: int, columns: int, width: int) -> Tensor:
    """(1, rows * columns, width) float32, fixed: half the channels encode the column, half the row.

    Each half is sin, then cos, of p / 10000^(i / (width / 4)) (Vaswani et al. 2017, section 3.5; the order of DiT and
    MAE). ``width`` is a multiple of 4.
    """
    frequencies = _MAX_PERIOD ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    row, column = torch.meshgrid(
        torch.arange(rows, dtype=torch.float64), torch.arange(columns, dtype=torch.float64), indexing="ij"
    )
    halves = []
    for place in (column, row):
        angles = torch.outer(place.flatten(), frequencies)
        halves += [angles.sin(), angles.cos()]
    return torch.cat(halves, dim=1).unsqueeze(0).float()
