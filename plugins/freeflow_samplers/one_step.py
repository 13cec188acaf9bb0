"""One jump of the student."""

from __future__ import annotations

from typing import Self, final

import torch
from torch import Tensor

from freeflow_core.config.component import ComponentConfig
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import BuildContext, FlowMapSampler, Student
from freeflow_core.interfaces.sampler import OnStep
from freeflow_core.types import Condition, Draws, Guidance, Samples
from freeflow_samplers.config import OneStepConfig
from freeflow_samplers.grids import check_start, grid_times
from freeflow_samplers.jumps import student_jump


@final
class OneStepSampler(FlowMapSampler):
    """X(z, grid[0], grid[1]): one evaluation. The guidance weight is the student's input; its interval was learnt."""

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        assert isinstance(config, OneStepConfig)
        return cls()

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
        if len(times) != 2:
            raise ConfigError(
                f"The one-step sampler takes exactly one step, but the grid has {len(times) - 1}. Ask for one step, or "
                "use few-step (students trained from any time) or student-then-teacher (every student)."
            )
        check_start(model, times[0])
        x = student_jump(model, z, times[0], times[1], condition, guidance)
        if on_step is not None:
            on_step(0, grid[1], x)
        return Samples(x.to(z.dtype), 1.0)
