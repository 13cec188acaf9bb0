"""The pairs of times, as maps from uniform draws on the host."""

from __future__ import annotations

import torch
from torch import Tensor

from freeflow_core.math.flow import logit_normal
from freeflow_core.types import Draws
from freeflow_meanflow.config import MeanFlowOptions


def time_pairs(draws: Draws, config: MeanFlowOptions) -> tuple[Tensor, Tensor, Tensor]:
    """t, s (N,) float64 with s <= t, and the host index of the rows with s < t.

    Two logit-normal draws, sorted, and s = t in ``instant_share`` of the rows (Geng et al. 2025, section 4.3, table
    1a); or, with ``end_location``, s of a distribution of its own, held below t. Streams ``time`` and ``end-time``.
    """
    first = logit_normal(draws.uniform("time"), config.time_location, config.time_scale)
    end = draws.uniform("end-time")
    if config.end_location is None:
        second = logit_normal(end, config.time_location, config.time_scale)
        t, s = torch.maximum(first, second), torch.minimum(first, second)
    else:
        scale = config.time_scale if config.end_scale is None else config.end_scale
        t = first
        s = torch.minimum(logit_normal(end, config.end_location, scale), t)
    moving, instant = draws.split(config.instant_share)
    s = s.index_copy(0, instant, t[instant])
    return t, s, moving[s[moving] < t[moving]]
