"""Dormand-Prince with step-size control."""

from __future__ import annotations

import itertools
from typing import Self, final

import torch
from torch import Tensor
from torchdiffeq import odeint

from freeflow_core.config.component import ComponentConfig
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import BuildContext, Teacher, VelocitySampler
from freeflow_core.interfaces.sampler import OnStep
from freeflow_core.math.flow import mean_square
from freeflow_core.types import Condition, Draws, Guidance, Samples
from freeflow_samplers.config import AdaptiveConfig
from freeflow_samplers.grids import grid_times, shifted_grid
from freeflow_samplers.guided_field import GuidedField


@final
class AdaptiveSampler(VelocitySampler):
    """Dormand-Prince 5(4): each step keeps the root-mean-square error of the *worst sample* within the tolerance.

    The grid gives the start, the end, and the times ``on_step`` is told about (interpolated); the steps are the
    solver's own. All samples of a batch share them, so a sample's result depends, within the tolerance, on the samples
    beside it: use a fixed-step sampler where that matters. The step-size control reads the error back after every
    step, so the host waits for the device. Guidance jumps at its interval's ends; the path is cut there, and each
    piece is guided throughout or not at all.
    """

    def __init__(self, config: AdaptiveConfig) -> None:
        self._config = config

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        assert isinstance(config, AdaptiveConfig)
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
        times = grid_times(grid)
        x = z.to(field.state_dtype(self._config.state_dtype))
        inner_cuts = {cut for cut in (guidance.low, guidance.high) if times[-1] < cut < times[0]}
        cuts = sorted({times[0], times[-1], *inner_cuts}, reverse=True)
        for start, end in itertools.pairwise(cuts):
            told = [time for time in times[1:] if start > time >= end] if on_step is not None else []
            stops = [start, *told, *([] if told and told[-1] == end else [end])]
            path = self._integrate(field, x, stops)
            x = path[-1]
            if on_step is not None:
                for time, state in zip(told, path[1:], strict=False):
                    on_step(times.index(time) - 1, torch.tensor(time, dtype=torch.float64), state)
        return Samples(x.to(z.dtype), field.evaluations)

    def _integrate(self, field: GuidedField, x: Tensor, stops: list[float]) -> Tensor:
        weight = field.weights((stops[0] + stops[-1]) / 2)
        t = torch.tensor(stops, dtype=torch.float64, device=x.device)
        config = self._config
        try:
            return odeint(
                lambda time, state: field.velocity(state, float(time), weight),
                x,
                t,
                rtol=config.rtol,
                atol=config.atol,
                method="dopri5",
                # step_t: the end point is stepped to, not interpolated.
                options={"norm": _worst_sample, "step_t": t[-1:], "max_num_steps": config.max_steps},
            )
        except AssertionError as error:
            raise ConfigError(
                f"The adaptive sampler cannot keep rtol={config.rtol:g} and atol={config.atol:g} between "
                f"t = {stops[0]:g} and t = {stops[-1]:g} ({str(error)[:80]}). Loosen the tolerances, set "
                "state_dtype to float64, raise max_steps, or check that the teacher's velocity is finite."
            ) from error


def _worst_sample(error: Tensor) -> Tensor:
    return mean_square(error).max().sqrt()
