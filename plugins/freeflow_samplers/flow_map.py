"""Samplers that jump with a student's flow map, alone or before the teacher."""

from __future__ import annotations

import itertools
from typing import final

import torch
from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import FlowMapSampler, HybridSampler, StartTimes, Student, Teacher
from freeflow_core.interfaces.sampler import OnStep
from freeflow_core.math.flow import linear_interpolate
from freeflow_core.types import Condition, Draws, Guidance, Samples
from freeflow_samplers.config import FewStepConfig, OneStepConfig, StudentThenTeacherConfig
from freeflow_samplers.velocity import (
    EulerSampler,
    HeunSampler,
    OnShiftedGrid,
    grid_times,
    network_dtype,
    network_times,
)


@final
class OneStepSampler(FlowMapSampler):
    """X(z, grid[0], grid[1]): one evaluation. The guidance weight is the student's input; its interval was learnt."""

    def __init__(self, config: OneStepConfig) -> None:
        pass

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
        times = student_times(model, grid)
        if len(times) != 2:
            raise ConfigError(
                f"The one-step sampler takes exactly one step, but the grid has {len(times) - 1}. Ask for one step, or "
                "use few-step (students trained from any time) or student-then-teacher (every student)."
            )
        x = jump(model, z, times[0], times[1], condition, guidance)
        if on_step is not None:
            on_step(0, grid[1], x)
        return Samples(x.to(z.dtype), 1.0)


@final
class FewStepSampler(OnShiftedGrid, FlowMapSampler):
    """Jumps along the grid, one evaluation each.

    Deterministic: x_s = X(x_t, t, s) (Geng et al. 2025, section 4). With ``renoise``: x_0 = X(x_t, t, 0), then
    x_s = (1 - s) x_0 + s n with fresh noise (Song et al. 2023, algorithm 1), stream ``renoise-<step>``.
    """

    _config: FewStepConfig

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
        times = student_times(model, grid)
        if model.start_times is StartTimes.PRIOR and len(times) > 2:
            raise ConfigError(
                "This student was trained from the prior alone and has learnt to jump from t = 1 only, so it has no "
                f"few-step mode, but {len(times) - 1} steps were asked for. Use one-step, or student-then-teacher: one "
                "student jump followed by teacher steps."
            )
        x = z
        for i, (t, s) in enumerate(itertools.pairwise(times)):
            x = jump(model, x, t, 0.0 if self._config.renoise else s, condition, guidance)
            if self._config.renoise and s > 0:
                x = linear_interpolate(x, _fresh_noise(draws, i, x), network_times(s, x))
            if on_step is not None:
                on_step(i, grid[i + 1], x)
        return Samples(x.to(z.dtype), float(len(times) - 1))


@final
class StudentThenTeacherSampler(OnShiftedGrid, HybridSampler):
    """X(z, grid[0], grid[1]) by the student, then the teacher's velocity along the rest of the grid.

    The evaluations of both are added, and the first step of a grid is the student's. This is how a student trained from
    the prior alone gets better with more compute (FreeFlow, Tong et al. 2025).
    """

    def __init__(self, config: StudentThenTeacherConfig) -> None:
        super().__init__(config)
        self._teacher_steps = HeunSampler(config) if config.then == "heun" else EulerSampler(config)

    @torch.no_grad()
    def sample(
        self,
        model: tuple[Student, Teacher],
        z: Tensor,
        grid: Tensor,
        condition: Condition,
        guidance: Guidance,
        draws: Draws | None = None,
        on_step: OnStep | None = None,
    ) -> Samples:
        student, teacher = model
        times = student_times(student, grid)
        if len(times) < 3:
            raise ConfigError(
                "The student-then-teacher sampler needs a grid of at least two steps, the student's jump and one of "
                "the teacher, but got one. Ask for more steps, or use one-step for the student alone."
            )
        x = jump(student, z, times[0], times[1], condition, guidance).to(z.dtype)
        later: OnStep | None = None
        if on_step is not None:
            told = on_step
            told(0, grid[1], x)
            later = lambda i, time, state: told(i + 1, time, state)  # noqa: E731
        rest = self._teacher_steps.sample(teacher, x, grid[1:], condition, guidance, draws, later)
        return Samples(rest.x, 1 + rest.num_evaluations)


def jump(student: Student, x: Tensor, t: float, s: float, condition: Condition, guidance: Guidance) -> Tensor:
    """X(x, t, s) (N, *D) in the student's dtype, at least float32, for one pair of times."""
    x = x.to(torch.promote_types(network_dtype(student, x), torch.float32))
    return student.flow_map(x, network_times(t, x), network_times(s, x), condition, guidance.weight)


def student_times(student: Student, grid: Tensor) -> list[float]:
    """The grid as numbers.

    Raises:
        ConfigError: as :func:`freeflow_samplers.velocity.grid_times`, and for a start elsewhere than at noise of a
            student that learnt to jump from noise alone.
    """
    times = grid_times(grid)
    if student.start_times is StartTimes.PRIOR and times[0] != 1:
        raise ConfigError(
            f"This student was trained from the prior alone, so it can jump from t = 1 only, but the grid starts at "
            f"t = {times[0]:g}. Start the grid at 1, or sample from there with the teacher (sampler euler or heun)."
        )
    return times


def _fresh_noise(draws: Draws | None, step: int, x: Tensor) -> Tensor:
    if draws is None:
        raise ConfigError(
            "The few-step sampler with renoise=true needs random draws for its fresh noise, but got none. Pass draws, "
            "or set renoise=false for deterministic jumps."
        )
    return draws.noise(f"renoise-{step}", tuple(x.shape[1:])).to(x)
