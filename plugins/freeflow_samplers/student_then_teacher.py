"""One jump of the student, then the teacher."""

from __future__ import annotations

from typing import Self, final

import torch
from torch import Tensor

from freeflow_core.config.component import ComponentConfig
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import BuildContext, HybridSampler, Student, Teacher
from freeflow_core.interfaces.sampler import OnStep
from freeflow_core.types import Condition, Draws, Guidance, Samples
from freeflow_samplers.config import StudentThenTeacherConfig
from freeflow_samplers.fixed_steps import euler_step, heun_step, integrate
from freeflow_samplers.grids import check_start, grid_times, shifted_grid
from freeflow_samplers.guided_field import GuidedField
from freeflow_samplers.jumps import student_jump


@final
class StudentThenTeacherSampler(HybridSampler):
    """X(z, grid[0], grid[1]) by the student, then the teacher's velocity along the rest of the grid.

    The student's one evaluation and the teacher's are added. This is how a student trained from the prior alone gets
    better with more compute (FreeFlow, arXiv 2511.19428).
    """

    def __init__(self, config: StudentThenTeacherConfig) -> None:
        self._config = config

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        assert isinstance(config, StudentThenTeacherConfig)
        return cls(config)

    def default_grid(self, num_steps: int) -> Tensor:
        """``num_steps`` in all, the student's jump being the first."""
        return shifted_grid(num_steps, self._config.shift)

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
        config, (student, teacher) = self._config, model
        times = grid_times(grid)
        if len(times) < 3:
            raise ConfigError(
                "The student-then-teacher sampler needs a grid of at least two steps, the student's jump and one of "
                "the teacher, but got one. Ask for more steps, or use one-step for the student alone."
            )
        check_start(student, times[0])
        x = student_jump(student, z, times[0], times[1], condition, guidance).to(z.dtype)
        if on_step is not None:
            on_step(0, grid[1], x)
        field = GuidedField(teacher, z, condition, guidance)
        use_heun = config.then == "heun"
        x = integrate(
            field,
            x.to(field.state_dtype(config.state_dtype)),
            times[1:],
            heun_step(config.decide_at == "step-start") if use_heun else euler_step,
            on_step,
            last_rule=euler_step if use_heun and config.final_euler else None,
            first_index=1,
        )
        return Samples(x.to(z.dtype), 1 + field.evaluations)
