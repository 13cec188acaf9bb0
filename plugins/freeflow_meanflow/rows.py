"""The rows of one step: noised data, two times, and the guidance each row is trained with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import Models
from freeflow_core.math.flow import like_states, linear_interpolate, linear_velocity
from freeflow_core.types import Batch, Condition, Draws, Guidance
from freeflow_meanflow.config import MeanFlowOptions
from freeflow_meanflow.times import time_pairs


@final
@dataclass(frozen=True)
class Rows:
    """N rows that jump from t to s <= t.

    Args:
        x_t: (N, *D) noised data.
        t, s: (N,) times, float64 on the host.
        moving: host index of the rows with s < t.
        velocity: (N, *D) dx_t/dt of each sample's own path, n - x on the linear one.
        condition: N conditions; the null class where the label was dropped.
        guidance: (N,) g, the network's input, 1 where the label was dropped; float64 on the host.
        weight: (N,) the same within ``guidance_interval``, 1 outside: how the velocity is guided.
    """

    x_t: Tensor
    t: Tensor
    s: Tensor
    moving: Tensor
    velocity: Tensor
    condition: Condition
    guidance: Tensor
    weight: Tensor


def draw_rows(
    models: Models, batch: Batch, draws: Draws, config: MeanFlowOptions, guidance: Tensor, dropout: float
) -> Rows:
    """The batch's data noised; streams ``noise``, ``time``, ``end-time``, ``label-dropout``.

    Args:
        guidance: (N,) one weight a row.
        dropout: share of labels replaced by the null class.

    Raises:
        ConfigError: a batch without data, or a condition without a null class.
    """
    if batch.x is None:
        raise ConfigError(
            "MeanFlow starts from noised data, but the source yields none. Choose a source with data, such as "
            "--set source=digits."
        )
    t, s, moving = time_pairs(draws, config)
    noise = draws.noise("noise", tuple(batch.x.shape[1:]))
    x = batch.x.to(noise)
    at = like_states(t, x)
    condition, dropped = _drop_labels(batch.condition, models["student"].bare.num_classes, dropout, draws)
    guidance = guidance.masked_fill(dropped, 1.0)
    return Rows(
        linear_interpolate(x, noise, at),
        t,
        s,
        moving,
        linear_velocity(x, noise),
        condition,
        guidance,
        Guidance(guidance, *config.guidance_interval).at(t),
    )


def _drop_labels(condition: Condition, num_classes: int | None, share: float, draws: Draws) -> tuple[Condition, Tensor]:
    """A share of the labels replaced by the null class, one after the last (Ho & Salimans 2022, algorithm 1)."""
    if condition is None or num_classes is None or share == 0:
        return condition, torch.zeros(len(draws.index), dtype=torch.bool)
    if not isinstance(condition, Tensor) or condition.ndim != 1:
        raise ConfigError(
            "label_dropout replaces class labels, one number a sample; this source's condition is something "
            "else. Set objective.label_dropout=0."
        )
    dropped = draws.uniform("label-dropout") < share
    return condition.masked_fill(dropped.to(condition.device, non_blocking=True), num_classes), dropped
