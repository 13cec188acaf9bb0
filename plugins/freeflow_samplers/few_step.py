"""Several jumps of the student."""

from __future__ import annotations

import itertools
from typing import Self, final

import torch
from torch import Tensor

from freeflow_core.config.component import ComponentConfig
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import BuildContext, FlowMapSampler, StartTimes, Student
from freeflow_core.interfaces.sampler import OnStep
from freeflow_core.math.flow import linear_interpolate
from freeflow_core.types import Condition, Draws, Guidance, Samples
from freeflow_samplers.config import FewStepConfig
from freeflow_samplers.grids import check_start, grid_times, shifted_grid
from freeflow_samplers.jumps import student_jump


@final
class FewStepSampler(FlowMapSampler):
    """Jumps along the grid, one evaluation each.

    Deterministic: x_s = X(x_t, t, s) (Geng et al. 2025, section 4). With ``renoise``: x_0 = X(x_t, t, 0), then
    x_s = (1 - s) x_0 + s n with fresh noise (Song et al. 2023, algorithm 1), stream ``renoise-<step>``.
    """

    def __init__(self, config: FewStepConfig) -> None:
        self._config = config

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        assert isinstance(config, FewStepConfig)
        return cls(config)

    def default_grid(self, num_steps: int) -> Tensor:
        return shifted_grid(num_steps, self._config.shift)

    @torch.no_grad()
    def sample(
        self,
        model: Student,
        z: Tensor,
        grid: Tensor,
        condition: Condition,
        guidance: Guidance,
        draws: Draws | None = None,
        on_step: OnStep | None = None,
    ) -> Samples:
        times = grid_times(grid)
        _check_student(model, len(times) - 1)
        check_start(model, times[0])
        x = z
        for i, (time, next_time) in enumerate(itertools.pairwise(times)):
            if self._config.renoise:
                x = student_jump(model, x, time, 0.0, condition, guidance)
                x = _noised(x, next_time, draws, i)
            else:
                x = student_jump(model, x, time, next_time, condition, guidance)
            if on_step is not None:
                on_step(i, grid[i + 1], x)
        return Samples(x.to(z.dtype), float(len(times) - 1))


def _noised(x: Tensor, time: float, draws: Draws | None, step: int) -> Tensor:
    if time == 0:
        return x
    if draws is None:
        raise ConfigError(
            "The few-step sampler with renoise=true needs random draws for its fresh noise, but got none. Pass draws, "
            "or set renoise=false for deterministic jumps."
        )
    noise = draws.noise(f"renoise-{step}", tuple(x.shape[1:])).to(x)
    return linear_interpolate(x, noise, torch.full((len(x),), time, dtype=torch.float64))


def _check_student(student: Student, num_steps: int) -> None:
    if student.start_times is StartTimes.PRIOR and num_steps > 1:
        raise ConfigError(
            f"This student was trained from the prior alone and has learnt to jump from t = 1 only, so it has no "
            f"few-step mode, but {num_steps} steps were asked for. Use one-step, or student-then-teacher: one student "
            "jump followed by teacher steps."
        )
