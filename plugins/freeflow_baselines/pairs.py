"""Training on pairs: a noise, and where the teacher's trajectory takes it."""

import itertools
from collections.abc import Callable
from typing import Self, TypeAlias, final

import torch
from torch import Tensor

from freeflow_baselines.config import PairOptions, PairsConfig
from freeflow_baselines.shared import solver_step
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import BuildContext, Distance, Teacher
from freeflow_core.interfaces.objective import Context, Model, Models, Objective
from freeflow_core.interfaces.student import AverageVelocityStudent, StartTimes, Student
from freeflow_core.math.flow import linear_interpolate, linear_velocity, mean_square, uniform_grid
from freeflow_core.objective_kit.jumps import jumps_from_noise, raw_output, root_mean_square
from freeflow_core.objective_kit.passes import Jumps, teacher_velocity, velocity_with_gradient
from freeflow_core.types import Batch, Condition, Draws, Guidance, Loss, Losses, Progress

EndPointLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""``(end, x) -> (N,)``, with gradient in ``end`` (N, *D)."""


@final
class PairRegression(Objective):
    """Regression on pairs (z, x) of the teacher: x = ODE(z), made anew in every step.

    endpoint: min E || X(z, 1, 0) - x ||^2, knowledge distillation (Luhman & Luhman 2021). Zero
    exactly when every noise goes where the teacher takes it; with too little capacity the squares blur.

    rectified-flow: min E || u(x_t, t, s) - (z - x) ||^2 with x_t = (1 - t) x + t z (Liu et al. 2022,
    eq. 1; one reflow). Its minimiser is the velocity of a flow with the same marginals and straighter paths, straight
    where no two of the pairs' lines cross; one Euler step is then a jump. Ours: s is uniform on (0, t), so that a flow
    map learns that one velocity for jumps of every length.

    Cost: F + B, and K T with euler, 2 K T with heun, for K steps (T = F, 2F where guided); and what ``distance`` costs,
    a perceptual one, which both papers' images need to stay sharp.

    Random streams: ``prior``, ``guidance``, the teacher's own for conditions; ``time``, ``end-time``.
    """

    def __init__(self, config: PairsConfig, loss: EndPointLoss | None = None) -> None:
        straight = config.mode == "rectified-flow"
        self._config, self._loss = config, loss or square_loss
        self.requires = AverageVelocityStudent if straight else Student
        self.start_times = StartTimes.ANY if straight else StartTimes.PRIOR

    @classmethod
    def from_config(cls, config: PairsConfig, context: BuildContext) -> Self:
        return cls(config, end_point_loss(config, context))

    def losses(self, models: Models, batch: Batch, draws: Draws, progress: Progress, context: Context) -> Losses:
        student = models["student"]
        jumps = jumps_from_noise(models, batch, draws, self._config)
        x = end_point(models.teacher, jumps.x_t, jumps.condition, jumps.guidance, self._config)
        if self._config.mode == "endpoint":
            end = end_with_gradient(student, jumps)
            per_sample, residual = self._loss(end, x), end - x
        else:
            t = draws.uniform("time")
            x_t = linear_interpolate(x, jumps.x_t, t)
            u = velocity_with_gradient(student, *jumps._replace(x_t=x_t, t=t, s=draws.uniform("end-time") * t))
            residual = u - linear_velocity(x, jumps.x_t)
            per_sample = mean_square(residual)
        return {"student": Loss(per_sample, {"pair_residual": root_mean_square(residual)})}


def end_with_gradient(student: Model, jumps: Jumps) -> Tensor:
    """X(x_t, t, s) (N, *D) by a gradient pass of any student."""
    reached: Tensor = student.bare.jump(raw_output(student.wrapped, jumps), jumps.x_t, jumps.t, jumps.s)
    return reached.to(jumps.x_t.dtype)


def square_loss(end: Tensor, x: Tensor) -> Tensor:
    """(N,) mean squares."""
    return mean_square(end - x)


def end_point_loss(config: PairOptions, context: BuildContext) -> EndPointLoss:
    """Of end points and the teacher's. Raises ``ConfigError`` for a ``distance`` where no codec makes images."""
    if config.distance is None:
        return square_loss
    if context.codec is None:
        raise ConfigError("objective.distance compares images, but nothing here turns states into images.")
    codec, options = context.codec, config.distance.model_dump()
    distance: Distance = context.component("distance", options.pop("name"), options)

    def loss(end: Tensor, x: Tensor) -> Tensor:
        with torch.no_grad():
            images = codec.decode_with_gradient(x)
        found = distance.between(codec.decode_with_gradient(end), images).to(end)
        return found + config.square_weight * mean_square(end - x) if config.square_weight else found

    return loss


def end_point(teacher: Teacher, z: Tensor, condition: Condition, guidance: Tensor, config: PairOptions) -> Tensor:
    """The state (N, *D) at t = 0 of the teacher's trajectory that starts at ``z`` (N, *D), t = 1.

    Guidance (N,) is decided at each step's start, so that a step across an interval's end follows one smooth field.
    """
    x = z
    for t, s in itertools.pairwise(uniform_grid(config.solver_steps).unbind()):
        t, s = t.expand(len(x)), s.expand(len(x))
        weight = Guidance(guidance, *config.guidance_interval).at(t)

        def field(state: Tensor, time: Tensor, weight: Tensor = weight) -> Tensor:
            return teacher_velocity(teacher, state, time, condition, weight)

        x = solver_step(field, x, t, s, config.solver)
    return x
