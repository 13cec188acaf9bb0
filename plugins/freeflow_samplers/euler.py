"""Euler's method."""

from __future__ import annotations

from typing import Self, final

import torch
from torch import Tensor

from freeflow_core.config.component import ComponentConfig
from freeflow_core.interfaces import BuildContext, Teacher, VelocitySampler
from freeflow_core.interfaces.sampler import OnStep
from freeflow_core.types import Condition, Draws, Guidance, Samples
from freeflow_samplers.config import EulerConfig
from freeflow_samplers.fixed_steps import euler_step, integrate
from freeflow_samplers.grids import grid_times, shifted_grid
from freeflow_samplers.guided_field import GuidedField


@final
class EulerSampler(VelocitySampler):
    """x_s = x_t + (s - t) v(x_t, t): first order, one evaluation per step, two where guided.

    Guidance is decided at each evaluation's time, which is the start of its step.
    """

    def __init__(self, config: EulerConfig) -> None:
        self._config = config

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        assert isinstance(config, EulerConfig)
        return cls(config)

    def default_grid(self, num_steps: int) -> Tensor:
        return shifted_grid(num_steps, self._config.shift)

    @torch.no_grad()
    def sample(
        self,
        model: Teacher,
        z: Tensor,
        grid: Tensor,
        condition: Condition,
        guidance: Guidance,
        draws: Draws | None = None,
        on_step: OnStep | None = None,
    ) -> Samples:
        field = GuidedField(model, z, condition, guidance)
        x = z.to(field.state_dtype(self._config.state_dtype))
        x = integrate(field, x, grid_times(grid), euler_step, on_step)
        return Samples(x.to(z.dtype), field.evaluations)
