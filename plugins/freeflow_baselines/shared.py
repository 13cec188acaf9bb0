"""What the objectives here share: rows, the field to follow, averaged targets, times, a learned weight of time."""

import copy
import math
from collections.abc import Callable
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from freeflow_baselines.config import FlowMapOptions, VelocityOptions
from freeflow_core.interfaces import AverageVelocityStudent, BuildContext, Models, Objective, Role, Student, Teacher
from freeflow_core.math.flow import expand_times, like_states, logit_normal
from freeflow_core.objective_kit.jumps import draw_guidance, guided_field
from freeflow_core.objective_kit.options import DerivativeOptions, GuidanceOptions
from freeflow_core.objective_kit.passes import check_derivative
from freeflow_core.objective_kit.rows import NoisyRows, noisy_rows
from freeflow_core.types import Batch, Draws, Loss, Progress

TARGET, TIME_WEIGHT = "target", "time_weight"
_FREQUENCIES = 8


class VelocityObjective(Objective):
    """Base: trains average velocities on noised data, after the teacher's velocity or the data's own."""

    needs_data = True
    requires = AverageVelocityStudent

    def __init__(self, config: VelocityOptions) -> None:
        self._config: Any = config
        self.needs_teacher = config.velocity == "teacher"

    @classmethod
    def from_config(cls, config: VelocityOptions, context: BuildContext) -> Self:
        if isinstance(config, DerivativeOptions):
            check_derivative(config.derivative, context)
        return super().from_config(config, context)


def rows_from_data(batch: Batch, draws: Draws, t: Tensor, config: GuidanceOptions) -> NoisyRows:
    """The batch's data noised to ``t`` (N,); streams ``noise`` and ``guidance``. ``ConfigError`` without data."""
    return noisy_rows(batch, draws, t, draw_guidance(draws, config))


def path_velocity(models: Models, rows: NoisyRows, config: VelocityOptions) -> Tensor:
    """The velocity that ``config`` names at the rows, (N, *D), without gradient."""
    return rows.velocity if config.velocity == "data" else guided_field(models, rows.x_t, rows.t, rows, config)


@torch.no_grad()
def solver_step(field: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor, s: Tensor, solver: str) -> Tensor:
    """One step of ``euler`` or ``heun`` along ``field(x, t)`` from t to s, (N, *D)."""
    step, slope = expand_times(s - t, x), field(x, t)
    if solver == "heun":
        slope = (slope + field(x + step * slope, s)) / 2
    return x + step * slope


def averaged_target(student: Student, halflife_images: float | None) -> dict[str, Role]:
    """A network that trails the student, and that no gradient trains; none: the student's own current weights."""
    if halflife_images is None:
        return {}
    network = copy.deepcopy(student)
    return {TARGET: Role(network, trainable=False, follows="student", follow_halflife_images=halflife_images)}


def time_pairs(draws: Draws, config: FlowMapOptions) -> tuple[Tensor, Tensor, Tensor]:
    """(t, s), (N,) float64 on the host, and the host index of the rows with s < t; the others have s = t.

    triangle: 0 < s < t < 1 uniform (Boffi et al. 2025). duration: t - s logit-normal and s uniform in
    what is left (Sabour et al. 2025). Streams ``time`` and ``end-time``.
    """
    first, second = draws.uniform("time"), draws.uniform("end-time")
    if config.times == "triangle":
        t, s = torch.maximum(first, second), torch.minimum(first, second)
    else:
        d = logit_normal(first, config.duration_location, config.duration_scale)
        s = second * (1 - d)
        t = s + d
    moving, instant = draws.split(config.instant_share)
    return t, s.index_copy(0, instant, t[instant]), moving


def ramp(progress: Progress, share: float, end: float = 1.0) -> float:
    """Rises from 0 to ``end`` over a share of the run; ``end`` from the start where the share is 0."""
    return min(end, progress.fraction / share) if share else end


def normalised(g: Tensor, constant: float, scale: float = 1.0) -> Tensor:
    """g / (|g| / scale + c) of each row (Lu & Song 2024, section 4.2)."""
    return g / expand_times(g.flatten(1).norm(dim=1) / scale + constant, g)


@final
class TimeWeight(nn.Module):
    """w(t, s) (N,): linear in sines and cosines of both times.

    The uncertainty weighting exp(-w) L + w (Kendall et al. 2018; Karras et al. 2024, EDM2, eq. 14) has its minimum at
    w = log L, so that every time contributes alike: exp(-w) L = 1.

    Args:
        initial: w of every time at the start; log of the dimension, where L is a sum over dimensions.
    """

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.linear = nn.Linear(4 * _FREQUENCIES, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, initial)

    def forward(self, t: Tensor, s: Tensor) -> Tensor:
        frequencies = math.pi * torch.arange(1, _FREQUENCIES + 1, device=t.device, dtype=t.dtype)
        angles = torch.cat([t.unsqueeze(1) * frequencies, s.unsqueeze(1) * frequencies], 1)
        result: Tensor = self.linear(torch.cat([angles.sin(), angles.cos()], 1)).squeeze(1)
        return result


def weighted_losses(models: Models, per_sample: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, dict[str, Loss]]:
    """exp(-w) L with gradient for the student, and the weight's own loss exp(-w) sg(L) + w.

    Args:
        models: with the role ``time_weight``, or without: then the loss stays as it is.
        per_sample: (N,) losses L with gradient, at least 0.
        t, s: (N,) times on the host.
    """
    if TIME_WEIGHT not in models:
        return per_sample, {}
    at = per_sample.detach()
    w = models[TIME_WEIGHT].wrapped(like_states(t, at), like_states(s, at)).to(at.dtype)
    return torch.exp(-w.detach()) * per_sample, {TIME_WEIGHT: Loss(torch.exp(-w) * at + w)}


class FlowMapObjective(VelocityObjective):
    """Base of the objectives whose pairs of times (t, s) may have a learned weight."""

    _config: FlowMapOptions

    def roles(self, student: Student, teacher: Teacher | None) -> dict[str, Role]:
        if self._config.weighting == "none":
            return {}
        return {TIME_WEIGHT: Role(TimeWeight(math.log(math.prod(student.sample_shape))))}

    def squares(self, difference: Tensor) -> Tensor:
        """(N,): a sum over dimensions where a learned weight balances it, else a mean."""
        square = difference.square().flatten(1)
        return square.sum(1) if self._config.weighting == "learned" else square.mean(1)
