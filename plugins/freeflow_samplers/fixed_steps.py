"""One step of Euler's and of Heun's method, and the loop over a grid."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from freeflow_core.interfaces.sampler import OnStep
from freeflow_samplers.guided_field import GuidedField

StepRule: TypeAlias = Callable[[GuidedField, Tensor, float, float], Tensor]
"""``rule(field, x, time, next_time)`` -> x at ``next_time``."""


def euler_step(field: GuidedField, x: Tensor, time: float, next_time: float) -> Tensor:
    """x + (s - t) v(x, t)."""
    return x + (next_time - time) * field.velocity(x, time, field.weights(time))


def heun_step(decide_at_start: bool) -> StepRule:
    """Heun's method: the mean of the slopes at both ends of an Euler step (Karras et al. 2022, algorithm 1).

    Args:
        decide_at_start: the step's start decides about guidance for both slopes, so that a step across an interval's
            end integrates one smooth field; else each slope is guided by its own time.
    """

    def step(field: GuidedField, x: Tensor, time: float, next_time: float) -> Tensor:
        weight = field.weights(time)
        first = field.velocity(x, time, weight)
        next_weight = weight if decide_at_start else field.weights(next_time)
        second = field.velocity(x + (next_time - time) * first, next_time, next_weight)
        return x + (next_time - time) / 2 * (first + second)

    return step


def integrate(
    field: GuidedField,
    x: Tensor,
    times: list[float],
    rule: StepRule,
    on_step: OnStep | None,
    *,
    last_rule: StepRule | None = None,
    first_index: int = 0,
) -> Tensor:
    """``rule`` from times[0] to times[-1]; ``last_rule`` replaces it in the last step.

    ``on_step`` counts steps from ``first_index``. The step sizes are numbers on the host and nothing is read back, so
    the loop never waits for the device.
    """
    last = len(times) - 2
    for i, (time, next_time) in enumerate(itertools.pairwise(times)):
        x = (last_rule if last_rule is not None and i == last else rule)(field, x, time, next_time)
        if on_step is not None:
            on_step(first_index + i, torch.tensor(next_time, dtype=torch.float64), x)
    return x
