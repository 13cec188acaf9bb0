"""Heun's method."""

from __future__ import annotations

from typing import Self, final

import torch
from torch import Tensor

from freeflow_core.config.component import ComponentConfig
from freeflow_core.interfaces import BuildContext, Teacher, VelocitySampler
from freeflow_core.interfaces.sampler import OnStep
from freeflow_core.types import Condition, Draws, Guidance, Samples
from freeflow_samplers.config import HeunConfig
from freeflow_samplers.fixed_steps import euler_step, heun_step, integrate
from freeflow_samplers.grids import grid_times, shifted_grid
from freeflow_samplers.guided_field import GuidedField


@final
class HeunSampler(VelocitySampler):
    """Second order, two evaluations per step, each counted twice where guided (Karras et al. 2022, algorithm 1).

    With ``final_euler``, ``state_dtype: float64`` and ``decide_at: step-start`` it is the sampler of REPA and SiT.
    """

    def __init__(self, config: HeunConfig) -> None:
        self._config = config

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        assert isinstance(config, HeunConfig)
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
        config = self._config
        field = GuidedField(model, z, condition, guidance)
        x = integrate(
            field,
            z.to(field.state_dtype(config.state_dtype)),
            grid_times(grid),
            heun_step(config.decide_at == "step-start"),
            on_step,
            last_rule=euler_step if config.final_euler else None,
        )
        return Samples(x.to(z.dtype), field.evaluations)
