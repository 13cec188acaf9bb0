"""Small questions about tensors that several contracts ask."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from freeflow_core.math.random import PhiloxDraws
from freeflow_core.types import Condition


def draws_of(rows: int, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 5) -> PhiloxDraws:
    """Draws of the samples 0 to ``rows - 1``."""
    return PhiloxDraws(seed, torch.arange(rows), device=device, dtype=dtype)


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """||found - expected|| / ||expected||; infinity where shapes differ or a number is not finite."""
    if found.shape != expected.shape or not bool(torch.isfinite(found).all()):
        return math.inf
    size = float(expected.detach().double().norm())
    return float((found.detach().double() - expected.detach().double()).norm()) / max(size, 1e-12)


def rows_for(shape: tuple[int, ...], numbers: int) -> int:
    """Rows that hold about ``numbers`` numbers together: averages need many numbers, not many rows."""
    return max(16, min(1_024, numbers // math.prod(shape)))


def rows_of(condition: Condition) -> int | None:
    """N of a condition; None for None."""
    if condition is None:
        return None
    tensors = condition.values() if isinstance(condition, dict) else (condition,)
    counts = {len(tensor) if tensor.ndim else 0 for tensor in tensors}
    return counts.pop() if len(counts) == 1 else -1


def same_condition(first: Condition, second: Condition) -> bool:
    """Whether two conditions hold the same values."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.equal(first, second)
    return first is None and second is None


@contextmanager
def watched_random_state() -> Iterator[list[bool]]:
    """A list whose one entry, afterwards, says whether torch's global generator was used meanwhile."""
    before, used = torch.get_rng_state(), [False]
    yield used
    used[0] = not torch.equal(before, torch.get_rng_state())
