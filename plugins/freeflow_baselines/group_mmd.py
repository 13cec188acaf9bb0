"""The maximum mean discrepancy between two small groups of states."""

from __future__ import annotations

import torch
from torch import Tensor

from freeflow_core.math.flow import expand_times

_LEAST_SQUARE = 1e-8


def group_mmd(
    x: Tensor, y: Tensor, width: Tensor, *, size: int, unbiased: bool, comparable: Tensor | None = None
) -> Tensor:
    """Each row's part (N,) of MMD^2 between ``x`` and ``y`` (N, *D), taken over groups of ``size`` consecutive rows.

    A group's mean over its rows i of  mean_j [k(x_i, x_j) + k(y_i, y_j) - 2 k(x_i, y_j)],  with the Laplace kernel
    k(x, y) = exp(-|x - y|_2 / width) (Zhou et al. 2025, arXiv 2503.07565, section 4).

    Args:
        width: (N,) positive, equal within a group.
        unbiased: j != i only (the U-statistic, which is 0 in the mean where both distributions agree); else all j.
        comparable: (N / size, size, size) bool, pairs whose kernel is 0 where False; None: all are compared.
    """
    pairs = torch.ones(size, size, dtype=torch.bool, device=x.device)
    if unbiased:
        pairs.fill_diagonal_(False)
    allowed = pairs if comparable is None else pairs & comparable.to(x.device)
    groups_x, groups_y = (states.reshape(-1, size, states[0].numel()) for states in (x, y))
    scale = expand_times(width, x).reshape(-1, size, 1)

    def kernel(first: Tensor, second: Tensor) -> Tensor:
        square = (first.unsqueeze(2) - second.unsqueeze(1)).square().sum(3)
        return torch.exp(-square.clamp_min(_LEAST_SQUARE).sqrt() / scale) * allowed

    each = kernel(groups_x, groups_x) + kernel(groups_y, groups_y) - 2 * kernel(groups_x, groups_y)
    return (each.sum(2) / (size - 1 if unbiased else size)).flatten()
