"""The rows of one step: noised data with the velocity of its own path, and the field that is to be followed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from freeflow_baselines.config import GuidanceOptions, VelocityOptions
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import Models
from freeflow_core.math.flow import like_states, linear_interpolate, linear_velocity, uniform_between
from freeflow_core.objective_kit.passes import teacher_velocity
from freeflow_core.types import Batch, Condition, Draws, Guidance, index_condition


@final
@dataclass(frozen=True)
class PathRows:
    """States on the paths from data to noise.

    Args:
        x: (N, *D) data, and
        noise: (N, *D) the noise each is joined with.
        x_t: (N, *D) their state at
        t: (N,) times, float64 on the host.
        velocity: (N, *D) dx_t/dt along the sample's own path, n - x on the linear one.
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

    def take(self, rows: Tensor) -> PathRows:
        """The rows at a host index."""
        on = rows.to(self.x_t.device, non_blocking=True)
        return PathRows(
            self.x[on],
            self.noise[on],
            self.x_t[on],
            self.t[rows],
            self.velocity[on],
            index_condition(self.condition, rows),
            self.guidance[rows],
        )


def noised_rows(models: Models, batch: Batch, draws: Draws, t: Tensor, config: GuidanceOptions) -> PathRows:
    """The batch's data noised to ``t`` (N,), with streams ``noise`` and ``guidance``.

    Raises:
        ConfigError: a batch without data.
    """
    if batch.x is None:
        raise ConfigError(
            "This objective starts from noised data, but the source yields none. Choose a source with data, such as "
            "--set source=digits."
        )
    noise = draws.noise("noise", tuple(batch.x.shape[1:]))
    x = batch.x.to(noise)
    at = like_states(t, x)
    return PathRows(
        x,
        noise,
        linear_interpolate(x, noise, at),
        t,
        linear_velocity(x, noise),
        batch.condition,
        draw_guidance(draws, config),
    )


def draw_guidance(draws: Draws, config: GuidanceOptions) -> Tensor:
    """One weight g per row, (N,) float64 on the host."""
    return uniform_between(draws.uniform("guidance"), config.guidance_min, config.guidance_max)


def guided_field(
    models: Models, x_t: Tensor, t: Tensor, condition: Condition, guidance: Tensor, config: GuidanceOptions
) -> Tensor:
    """The teacher's field (N, *D) at states ``x_t``, guided with g inside ``guidance_interval``; one call."""
    weight = Guidance(guidance, *config.guidance_interval).at(t)
    return teacher_velocity(models.teacher, x_t, t, condition, weight)


def path_velocity(models: Models, rows: PathRows, config: VelocityOptions) -> Tensor:
    """The velocity that ``config`` names at the rows, (N, *D), without gradient."""
    if config.velocity == "data":
        return rows.velocity
    return guided_field(models, rows.x_t, rows.t, rows.condition, rows.guidance, config)


def root_mean_square(values: Tensor) -> Tensor:
    """0-d, detached: for logging."""
    return values.detach().float().square().mean().sqrt()


def host_zeros(rows: PathRows) -> Tensor:
    """(N,) end times 0."""
    return torch.zeros_like(rows.t)
