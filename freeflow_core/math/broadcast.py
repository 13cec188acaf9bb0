"""The one place where (N,) times meet (N, *D) states."""

from __future__ import annotations

from torch import Tensor


def expand_times(t: Tensor, like: Tensor) -> Tensor:
    """``t`` (N,) as (N, 1, ..., 1) on the device and in the dtype of ``like`` (N, *D).

    Raises ``ValueError`` unless ``t`` is (N,) for the N of ``like``.
    """
    if t.ndim != 1 or t.shape[0] != like.shape[0]:
        raise ValueError(f"times must be ({like.shape[0]},) for states {tuple(like.shape)}, got {tuple(t.shape)}")
    return t.to(device=like.device, dtype=like.dtype, non_blocking=True).reshape(-1, *([1] * (like.ndim - 1)))


def mean_square(x: Tensor) -> Tensor:
    """Mean of squares over all dimensions but the first: (N, *D) -> (N,)."""
    return x.square().flatten(1).mean(1)
