"""FLUX works on tokens: 2 x 2 latents each, with their place in the picture."""

from __future__ import annotations

import torch
from torch import Tensor


def pack(latents: Tensor) -> Tensor:
    """(N, C, H, W) to (N, H/2 W/2, 4C), for even H and W: rows of pairs first, channels before places in a token."""
    N, C, H, W = latents.shape
    return latents.view(N, C, H // 2, 2, W // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(N, H // 2 * (W // 2), 4 * C)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of :func:`pack`: (N, H/2 W/2, 4C) to (N, C, H, W)."""
    N, _, channels = tokens.shape
    latents = tokens.view(N, height // 2, width // 2, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return latents.reshape(N, channels // 4, height, width)


def image_places(height: int, width: int, like: Tensor) -> Tensor:
    """(H/2 W/2, 3): 0, row and column of each token, which its rotary embedding turns by."""
    rows = torch.arange(height // 2, device=like.device, dtype=like.dtype)
    columns = torch.arange(width // 2, device=like.device, dtype=like.dtype)
    places = torch.zeros(height // 2, width // 2, 3, device=like.device, dtype=like.dtype)
    places[..., 1], places[..., 2] = rows[:, None], columns[None, :]
    return places.reshape(-1, 3)
