"""Samplers that jump with a student's flow map, alone or before the teacher."""

import itertools
from collections.abc import Iterator
from typing import final

from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import FlowMapSampler, HybridSampler, StartTimes, Student, Teacher
from freeflow_core.math.flow import linear_interpolate
from freeflow_samplers.config import FewStepConfig, GridConfig, OneStepConfig, StudentThenTeacherConfig
from freeflow_samplers.velocity import EulerSampler, HeunSampler, SampledBatch, SteppingSampler, network_times


@final
class OneStepSampler(SteppingSampler, FlowMapSampler):
    """X(z, grid[0], grid[1]): one evaluation. The guidance weight is the student's input; its interval was learnt."""

    def __init__(self, config: OneStepConfig) -> None:
        super().__init__(GridConfig())

    def states(self, model: Student, x: Tensor, times: list[float], batch: SampledBatch) -> Iterator[Tensor]:
        _check_start(model, times)
        if len(times) != 2:
            raise ConfigError(
                f"The one-step sampler takes exactly one step, but the grid has {len(times) - 1}. Ask for one step, or "
                "use few-step (students trained from any time) or student-then-teacher (every student)."
            )
        yield batch.jump(model, x, times[0], times[1])


@final
class FewStepSampler(SteppingSampler, FlowMapSampler):
    """Jumps along the grid, one evaluation each.

    Deterministic: x_s = X(x_t, t, s) (Geng et al. 2025, section 4). With ``renoise``: x_0 = X(x_t, t, 0), then
    x_s = (1 - s) x_0 + s n with fresh noise (Song et al. 2023, algorithm 1), stream ``renoise-<step>``.
    """

    _config: FewStepConfig

    def states(self, model: Student, x: Tensor, times: list[float], batch: SampledBatch) -> Iterator[Tensor]:
        _check_start(model, times)
        if model.start_times is StartTimes.PRIOR and len(times) > 2:
            raise ConfigError(
                "This student was trained from the prior alone and has learnt to jump from t = 1 only, so it has no "
                f"few-step mode, but {len(times) - 1} steps were asked for. Use one-step, or student-then-teacher: one "
                "student jump followed by teacher steps."
            )
        for i, (t, s) in enumerate(itertools.pairwise(times)):
            x = batch.jump(model, x, t, 0.0 if self._config.renoise else s)
            if self._config.renoise and s > 0:
                if batch.draws is None:
                    raise ConfigError(
                        "The few-step sampler with renoise=true needs random draws for its fresh noise, but got none. "
                        "Pass draws, or set renoise=false for deterministic jumps."
                    )
                noise = batch.draws.noise(f"renoise-{i}", tuple(x.shape[1:])).to(x)
                x = linear_interpolate(x, noise, network_times(s, x))
            yield x


@final
class StudentThenTeacherSampler(SteppingSampler, HybridSampler):
    """X(z, grid[0], grid[1]) by the student, then the teacher's velocity along the rest of the grid.

    The evaluations of both are added, and the first step of a grid is the student's. This is how a student trained from
    the prior alone gets better with more compute (FreeFlow, Tong et al. 2025).
    """

    def __init__(self, config: StudentThenTeacherConfig) -> None:
        super().__init__(config)
        self._teacher_steps = HeunSampler(config) if config.then == "heun" else EulerSampler(config)

    def states(
        self, model: tuple[Student, Teacher], x: Tensor, times: list[float], batch: SampledBatch
    ) -> Iterator[Tensor]:
        student, teacher = model
        _check_start(student, times)
        if len(times) < 3:
            raise ConfigError(
                "The student-then-teacher sampler needs a grid of at least two steps, the student's jump and one of "
                "the teacher, but got one. Ask for more steps, or use one-step for the student alone."
            )
        x = batch.jump(student, x, times[0], times[1]).to(x.dtype)
        yield x
        yield from self._teacher_steps.states(teacher, x, times[1:], batch)


def _check_start(student: Student, times: list[float]) -> None:
    if student.start_times is StartTimes.PRIOR and times[0] != 1:
        raise ConfigError(
            f"This student was trained from the prior alone, so it can jump from t = 1 only, but the grid starts at "
            f"t = {times[0]:g}. Start the grid at 1, or sample from there with the teacher (sampler euler or heun)."
        )
