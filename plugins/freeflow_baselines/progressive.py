"""Progressive distillation: round by round, one step of the student replaces two of its predecessor."""

import copy
from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from freeflow_baselines.config import ProgressiveConfig
from freeflow_baselines.shared import rows_from_data
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces.objective import Context, Model, Models, ObjectiveInRounds, Role, Transition
from freeflow_core.interfaces.student import AverageVelocityStudent, StartTimes, Student
from freeflow_core.interfaces.teacher import Teacher
from freeflow_core.math.flow import average_velocity_jump, like_states, mean_square
from freeflow_core.objective_kit.jumps import guided_field, jumps_from_noise, jumps_to, root_mean_square
from freeflow_core.objective_kit.passes import Jumps, asked_rows, velocity_with_gradient, velocity_without_gradient
from freeflow_core.types import Batch, Draws, Loss, Losses, Progress

PREVIOUS = "previous"


@final
class Progressive(ObjectiveInRounds):
    """min E max(t, 1 - t)^2 || u(x_t, t, t - 1/N) - (u_1 + u_2) / 2 ||^2 on the grid t = 1/N ... 1, N halved by rounds.

    Progressive distillation (Salimans & Ho 2022, algorithm 2): u_1 and u_2 are the velocities of two
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

    @property
    def num_steps(self) -> int:
        return self._config.start_steps >> self._round

    def roles(self, student: Student, teacher: Teacher | None) -> dict[str, Role]:
        """The student as the round before left it; not asked in the first."""
        return {PREVIOUS: Role(copy.deepcopy(student), trainable=False)}

    def losses(self, models: Models, batch: Batch, draws: Draws, progress: Progress, context: Context) -> Losses:
        step = 1 / self.num_steps
        t = (draws.integers("grid-index", self.num_steps) + 1).double() / self.num_steps
        middle, s = t - step / 2, t - step
        if self.needs_data:
            jumps = jumps_to(s, rows_from_data(batch, draws, t, self._config))
        else:
            jumps = jumps_from_noise(models, batch, draws, self._config)._replace(t=t, s=s)
            jumps = jumps._replace(x_t=self._own_path(models["student"], jumps))
        first = self._velocity(models, jumps, jumps.x_t, t, middle)
        second = self._velocity(models, jumps, average_velocity_jump(jumps.x_t, first, t, middle), middle, s)
        u = velocity_with_gradient(models["student"], *jumps)
        residual = u - (first + second) / 2
        weight = like_states(torch.maximum(t, 1 - t).square(), u)
        terms = {"halving_residual": root_mean_square(residual), "grid_steps": residual.new_tensor(self.num_steps)}
        return {"student": Loss(weight * mean_square(residual), terms)}

    def _velocity(self, models: Models, jumps: Jumps, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The predecessor's average velocity (N, *D) from t to s, without gradient; the teacher's field at first."""
        if self._round == 0:
            return guided_field(models, x, t, jumps, self._config)
        return velocity_without_gradient(models[PREVIOUS], x, t, s, jumps.condition, jumps.guidance)

    def _own_path(self, student: Model, jumps: Jumps) -> Tensor:
        """Where the student's own steps from the noises lead at the jumps' grid times, (N, *D)."""
        x, step = jumps.x_t, 1 / self.num_steps
        for k in range(self.num_steps, 1, -1):
            moving = (jumps.t < (k - 0.5) * step).nonzero().flatten()  # still on their way at time k / N
            rows = asked_rows(moving, student.is_divided)
            if len(rows):
                t = torch.full((len(rows),), k * step, dtype=torch.float64)
                part = jumps._replace(x_t=x).take(rows)._replace(t=t, s=t - step)
                moved = average_velocity_jump(part.x_t, velocity_without_gradient(student, *part), part.t, part.s)
                x = x.index_copy(0, moving.to(x.device, non_blocking=True), moved[: len(moving)])
        return x

    def transitions(self, progress: Progress) -> Sequence[Transition]:
        """At a round's end the student becomes the predecessor of the next.

        Raises ``ConfigError``: a run that ends before its last round begins.
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


def round_bounds(config: ProgressiveConfig, total_images: int) -> list[int]:
    """Images at which rounds begin, and at which the last ends.

    Raises ``ConfigError``: the run ends before its last round begins.
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
