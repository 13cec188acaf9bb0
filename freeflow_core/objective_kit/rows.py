"""The rows of a step that starts from data: noisy samples, the weights they are guided with, labels dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_core.math.flow import like_states, linear_interpolate, linear_velocity
from freeflow_core.objective_kit.passes import take
from freeflow_core.types import Batch, Condition, Draws, index_condition


@final
@dataclass(frozen=True)
class NoisyRows:
    """States on the straight paths from data to noise.

    Args:
        x: (N, *D) data, and
        noise: (N, *D) the noise each is joined with.
        x_t: (N, *D) their state at
        t: (N,) times, float64 on the host.
        velocity: (N, *D) dx_t/dt along the sample's own path, n - x.
        condition: N conditions.
        guidance: (N,) guidance weights g, float64 on the host; networks are conditioned on them.
    """

    x: Tensor
    noise: Tensor
    x_t: Tensor
    t: Tensor
    velocity: Tensor
    condition: Condition
    guidance: Tensor

    def take(self, rows: Tensor) -> NoisyRows:
        """The rows at a host index."""
        x, noise, x_t, velocity = (take(part, rows) for part in (self.x, self.noise, self.x_t, self.velocity))
        condition = index_condition(self.condition, rows)
        return NoisyRows(x, noise, x_t, self.t[rows], velocity, condition, self.guidance[rows])


def noisy_rows(batch: Batch, draws: Draws, t: Tensor, guidance: Tensor) -> NoisyRows:
    """The batch's data joined with the draws' stream ``noise`` at times ``t`` (N,), with guidance weights (N,).

    Raises ``ConfigError``: a batch without data.
    """
    if batch.x is None:
        raise ConfigError("This objective starts from noised data, but the source yields none. Choose a --source NAME.")
    noise = draws.noise("noise", tuple(batch.x.shape[1:]))
    x = batch.x.to(noise)
    x_t = linear_interpolate(x, noise, like_states(t, x))
    return NoisyRows(x, noise, x_t, t, linear_velocity(x, noise), batch.condition, guidance)


def drop_labels(condition: Condition, num_classes: int | None, share: float, draws: Draws) -> tuple[Condition, Tensor]:
    """``condition`` with a share of its labels replaced by the null class (Ho & Salimans 2022, algorithm 1).

    Args:
        condition: (N,) labels, or None.
        num_classes: the null class, one after the last; None: the network has no classes, and nothing is dropped.
        share: in [0, 1].
        draws: stream ``label-dropout``.

    Returns:
        The condition, and (N,) bool on the host: the dropped rows.

    Raises ``ConfigError``: a condition that is no label.
    """
    if condition is None or num_classes is None or share == 0:
        return condition, torch.zeros(len(draws.index), dtype=torch.bool)
    if not isinstance(condition, Tensor) or condition.ndim != 1:
        raise ConfigError(
            "label_dropout replaces class labels, one number a sample; this source's condition is something "
            "else. Set objective.label_dropout=0."
        )
    dropped = draws.uniform("label-dropout") < share
    return condition.masked_fill(dropped.to(condition.device, non_blocking=True), num_classes), dropped
