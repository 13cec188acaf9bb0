"""Progressive distillation: round by round, one step of the student replaces two of its predecessor."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from freeflow_baselines.config_generative import ProgressiveConfig
from freeflow_baselines.rows import draw_guidance, guided_field, noised_rows, root_mean_square
from freeflow_core.config import ComponentConfig
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import (
    AverageVelocityStudent,
    BuildContext,
    Context,
    Model,
    Models,
    ObjectiveInRounds,
    Role,
    StartTimes,
    Student,
    Teacher,
    Transition,
)
from freeflow_core.math.flow import average_velocity_jump, like_states, mean_square
from freeflow_core.objective_kit.passes import velocity_with_gradient, velocity_without_gradient
from freeflow_core.types import Batch, Condition, Draws, Loss, Progress, index_condition

PREVIOUS = "previous"


@final
@dataclass(frozen=True)
class GridRows:
    """States ``x_t`` (N, *D) at grid times ``t`` (N,), conditions, and guidance weights (N,) on the host."""

    x_t: Tensor
    t: Tensor
    condition: Condition
    guidance: Tensor


@final
class Progressive(ObjectiveInRounds):
    """min E max(t, 1 - t)^2 || u(x_t, t, t - 1/N) - (u_1 + u_2) / 2 ||^2 on the grid t = 1/N ... 1, N halved by rounds.

    Progressive distillation (Salimans & Ho 2022, arXiv 2202.00512, algorithm 2): u_1 and u_2 are the velocities of two
    half steps from x_t; in the first round Euler steps of the (guided) teacher, which on the linear path are its DDIM
    steps, later jumps of the student as the round before left it. The weight is their truncated SNR, max(SNR, 1) on the
    implied data point. Each round starts from its predecessor's weights, with fresh moments and average, and the
    learning rate's schedule runs over the round.

    Fixed point: round by round the teacher's 2 ``start_steps``-step Euler sampler, not its exact trajectory: an error
    of O(1 / start_steps). Cost: 2F + F + B (5F; 7F in the first round, guided); states: prior (N - 1) / 2 F more.
    Known failures: the DDIM error is inherited, and each round's own adds up; a skipped round.

    Random streams: ``grid-index``, ``guidance``; ``noise`` or ``prior``.
    """

    requires = AverageVelocityStudent

    def __init__(self, config: ProgressiveConfig) -> None:
        self._config = config
        self._round = 0
        self.needs_data = config.states == "data"
        self.start_times = StartTimes.PRIOR if config.final_steps == 1 else StartTimes.ANY

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        assert isinstance(config, ProgressiveConfig)
        return cls(config)

    @property
    def num_steps(self) -> int:
        """N of the current round."""
        return self._config.start_steps >> self._round

    def roles(self, student: Student, teacher: Teacher | None) -> dict[str, Role]:
        """The student as the round before left it; not asked in the first."""
        return {PREVIOUS: Role(copy.deepcopy(student), trainable=False)}

    def losses(
        self, models: Models, batch: Batch, draws: Draws, progress: Progress, context: Context
    ) -> dict[str, Loss]:
        half = 0.5 / self.num_steps
        t = (draws.integers("grid-index", self.num_steps) + 1).double() / self.num_steps
        if self.needs_data:
            noised = noised_rows(models, batch, draws, t, self._config)
            rows = GridRows(noised.x_t, t, noised.condition, noised.guidance)
        else:
            rows = self._own_path(models, batch, draws, t)
        first = self._velocity(models, rows, rows.x_t, t, t - half)
        middle = average_velocity_jump(rows.x_t, first, t, t - half)
        second = self._velocity(models, rows, middle, t - half, t - 2 * half)
        u = velocity_with_gradient(models["student"], rows.x_t, t, t - 2 * half, rows.condition, rows.guidance)
        residual = u - (first + second) / 2
        weight = like_states(torch.maximum(t, 1 - t).square(), u)
        terms = {"halving_residual": root_mean_square(residual), "grid_steps": residual.new_tensor(self.num_steps)}
        return {"student": Loss(weight * mean_square(residual), terms)}

    def transitions(self, progress: Progress) -> Sequence[Transition]:
        """At a round's end the student becomes the predecessor of the next.

        Raises:
            ConfigError: a run that ends before its last round begins.
        """
        bounds = round_bounds(self._config, progress.total_images)
        if self._round + 1 == self._config.num_rounds or progress.images < bounds[self._round + 1]:
            return ()
        self._round += 1  # one round at a time, so that none is skipped, however short
        return (Transition("student", PREVIOUS, reset_optimizer=("student",), reset_ema=("student",)),)

    def schedule_span(self, progress: Progress) -> tuple[int, int]:
        bounds = round_bounds(self._config, progress.total_images)
        return bounds[self._round], bounds[self._round + 1]

    def state_dict(self) -> dict[str, Tensor]:
        return {"round": torch.tensor(self._round)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._round = int(state["round"])

    def _velocity(self, models: Models, rows: GridRows, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The predecessor's average velocity (N, *D) from t to s, without gradient; the teacher's field at first."""
        if self._round == 0:
            return guided_field(models, x, t, rows.condition, rows.guidance, self._config)
        return velocity_without_gradient(models[PREVIOUS], x, t, s, rows.condition, rows.guidance)

    def _own_path(self, models: Models, batch: Batch, draws: Draws, t: Tensor) -> GridRows:
        """Where the student's own steps from noise lead at grid times ``t``."""
        teacher, student = models.teacher, models["student"]
        condition = teacher.sample_condition(draws) if batch.condition is None else batch.condition
        rows = GridRows(draws.noise("prior", teacher.sample_shape), t, condition, draw_guidance(draws, self._config))
        x, step = rows.x_t, 1 / self.num_steps
        for k in range(self.num_steps, 1, -1):
            on_the_way = (t < (k - 0.5) * step).nonzero().flatten()
            if on_the_way.numel():
                moved = self._step(student, rows, x, on_the_way, k * step)
                x = x.index_copy(0, on_the_way.to(x.device, non_blocking=True), moved)
        return GridRows(x, t, rows.condition, rows.guidance)

    def _step(self, student: Model, rows: GridRows, x: Tensor, chosen: Tensor, time: float) -> Tensor:
        """The chosen rows, one grid step on from ``time``."""
        x = x[chosen.to(x.device, non_blocking=True)]
        t = torch.full((len(chosen),), time, dtype=torch.float64)
        s = t - 1 / self.num_steps
        condition = index_condition(rows.condition, chosen)
        u = velocity_without_gradient(student, x, t, s, condition, rows.guidance[chosen])
        return average_velocity_jump(x, u, t, s)


def round_bounds(config: ProgressiveConfig, total_images: int) -> list[int]:
    """Images at which rounds begin, and at which the last ends.

    Raises:
        ConfigError: the run ends before its last round begins.
    """
    num = config.num_rounds
    if config.round_images is None:
        return [total_images * number // num for number in range(num + 1)]
    bounds = [sum(config.round_images[:number]) for number in range(num)]
    if bounds[-1] >= total_images:
        raise ConfigError(
            f"objective.round_images lets the last of {num} rounds begin at image {bounds[-1]:,}, but the run ends at "
            f"image {total_images:,}. Shorten the rounds, or lengthen training.images."
        )
    return [*bounds, total_images]
