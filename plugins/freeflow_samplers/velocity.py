"""Samplers that integrate a teacher's velocity: Euler, Heun, Dormand-Prince."""

from __future__ import annotations

import itertools
from typing import Any, final

import torch
from torch import Tensor, nn
from torchdiffeq import odeint

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import Sampler, Teacher, VelocitySampler
from freeflow_core.interfaces.sampler import OnStep
from freeflow_core.math.flow import mean_square, uniform_grid
from freeflow_core.types import Condition, Draws, Guidance, Samples
from freeflow_samplers.config import AdaptiveConfig, EulerConfig, GridConfig, HeunConfig

_ROUNDING = 1e-12
"""A grid time may miss an interval's end by rounding alone (0.3 against 0.30000000000000004); it still counts."""


class OnShiftedGrid(Sampler[Any]):
    """Its own grid has times t' = shift t / (1 + (shift - 1) t) of the uniform t (Esser et al. 2024, eq. 23)."""

    def __init__(self, config: GridConfig) -> None:
        self._config = config

    def default_grid(self, num_steps: int) -> Tensor:
        """(num_steps + 1,) times from 1 to 0. Raises ``ValueError`` unless num_steps >= 1."""
        t, shift = uniform_grid(num_steps), self._config.shift
        return shift * t / (1 + (shift - 1) * t)


@final
class EulerSampler(OnShiftedGrid, VelocitySampler):
    """x_s = x_t + (s - t) v(x_t, t): first order, one evaluation per step, two where guided."""

    _config: EulerConfig

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
        x = field.start(self._config.state_dtype)
        for i, (t, s) in enumerate(itertools.pairwise(grid_times(grid))):
            x = x + (s - t) * field.velocity(x, t, field.weights(t))
            if on_step is not None:
                on_step(i, grid[i + 1], x)
        return Samples(x.to(z.dtype), field.evaluations)


@final
class HeunSampler(OnShiftedGrid, VelocitySampler):
    """Second order, two evaluations per step, each counted twice where guided (Karras et al. 2022, algorithm 1).

    With ``decide_at: step-start`` the start of a step decides about guidance for both of its slopes, so that a step
    across an interval's end integrates one smooth field; with ``evaluation`` each slope is guided by its own time.
    With ``final_euler``, ``state_dtype: float64`` and ``decide_at: step-start`` it is the sampler of REPA and SiT.
    """

    _config: HeunConfig

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
        field, times = GuidedField(model, z, condition, guidance), grid_times(grid)
        x = field.start(self._config.state_dtype)
        for i, (t, s) in enumerate(itertools.pairwise(times)):
            weight = field.weights(t)
            v = field.velocity(x, t, weight)
            ahead = x + (s - t) * v
            if self._config.final_euler and i == len(times) - 2:
                x = ahead
            else:
                weight = weight if self._config.decide_at == "step-start" else field.weights(s)
                x = x + (s - t) / 2 * (v + field.velocity(ahead, s, weight))
            if on_step is not None:
                on_step(i, grid[i + 1], x)
        return Samples(x.to(z.dtype), field.evaluations)


@final
class AdaptiveSampler(OnShiftedGrid, VelocitySampler):
    """Dormand-Prince 5(4): each step keeps the root-mean-square error of the *worst sample* within the tolerance.

    The grid gives the start, the end, and the times ``on_step`` is told about (interpolated); the steps are the
    solver's own. All samples of a batch share them, so a sample's result depends, within the tolerance, on the samples
    beside it: use a fixed-step sampler where that matters. The step-size control reads the error back after every
    step, so the host waits for the device. Guidance jumps at its interval's ends; the path is cut there, and each
    piece is guided throughout or not at all.
    """

    _config: AdaptiveConfig

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
        field, times = GuidedField(model, z, condition, guidance), grid_times(grid)
        x = field.start(self._config.state_dtype)
        inner_cuts = {cut for cut in (guidance.low, guidance.high) if times[-1] < cut < times[0]}
        for start, end in itertools.pairwise(sorted({times[0], times[-1], *inner_cuts}, reverse=True)):
            told = [i for i, t in enumerate(times[1:]) if start > t >= end] if on_step is not None else []
            stops = [start, *(times[i + 1] for i in told)]
            path = self._integrate(field, x, stops if stops[-1] == end else [*stops, end])
            x = path[-1]
            if on_step is not None:
                for i, state in zip(told, path[1:], strict=False):
                    on_step(i, grid[i + 1], state)
        return Samples(x.to(z.dtype), field.evaluations)

    def _integrate(self, field: GuidedField, x: Tensor, stops: list[float]) -> Tensor:
        """States at ``stops`` (S, N, *D), with or without guidance as the middle of the piece has it."""
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
                options={
                    "norm": lambda error: mean_square(error).max().sqrt(),
                    "step_t": t[-1:],
                    "max_num_steps": config.max_steps,
                },
            )
        except AssertionError as error:
            raise ConfigError(
                f"The adaptive sampler cannot keep rtol={config.rtol:g} and atol={config.atol:g} between "
                f"t = {stops[0]:g} and t = {stops[-1]:g} ({str(error)[:80]}). Loosen the tolerances, set "
                "state_dtype to float64, raise max_steps, or check that the teacher's velocity is finite."
            ) from error


@final
class GuidedField:
    """v(x, t) of a teacher for one batch, with condition and guidance filled in.

    Args:
        teacher: the velocity.
        z: (N, *D) the batch's noise.
        condition: N conditions.
        guidance: weights (N,) on the host, and the interval, closed at both ends.

    Attributes:
        evaluations: network evaluations per sample so far; a guided sample's evaluation counts two.
    """

    def __init__(self, teacher: Teacher, z: Tensor, condition: Condition, guidance: Guidance) -> None:
        if guidance.weight.shape != z.shape[:1]:
            raise ValueError(
                f"guidance needs one weight for each of {len(z)} samples, got {tuple(guidance.weight.shape)}"
            )
        self._teacher = teacher
        self._z = z
        self._condition = condition
        self._guidance = Guidance(guidance.weight, guidance.low - _ROUNDING, guidance.high + _ROUNDING)
        self._dtype = network_dtype(teacher, z)
        self.evaluations = 0.0

    def start(self, state_dtype: str) -> Tensor:
        """The noise in the configured precision of the state, raised to float64 for a float64 network."""
        return self._z.to(torch.promote_types(getattr(torch, state_dtype), self._dtype))

    def weights(self, time: float) -> Tensor:
        """(N,) guidance weights at ``time``, on the host; 1 outside the interval."""
        return self._guidance.at(torch.full((len(self._z),), time, dtype=torch.float64))

    def velocity(self, x: Tensor, time: float, weight: Tensor) -> Tensor:
        """v (N, *D) in the dtype of ``x``, guided by ``weight`` (N,); counted. Nothing is read back to the host."""
        self.evaluations += 1 + float((weight != 1).double().mean())
        state = x.to(self._dtype)
        v = self._teacher.guided_velocity(state, network_times(time, state), self._condition, weight)
        return v.to(x.dtype)


def network_dtype(network: nn.Module, z: Tensor) -> torch.dtype:
    """The dtype of a network's weights; a network without weights computes in the dtype of its states."""
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), z.dtype)


def network_times(time: float, x: Tensor) -> Tensor:
    """``time`` (N,) as networks get it in training: beside the states, in their precision but no less than float32."""
    return torch.full((len(x),), time, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)


def grid_times(grid: Tensor) -> list[float]:
    """The grid as numbers.

    Raises:
        ConfigError: unless it is (K+1,) with K >= 1, float64, finite, strictly falling and within [0, 1].
    """
    if grid.ndim != 1 or len(grid) < 2 or grid.dtype is not torch.float64:
        raise ConfigError(
            f"A time grid must be a float64 tensor of shape (steps + 1,) with at least one step, got {grid.dtype} "
            f"{tuple(grid.shape)}. freeflow_core.math.flow makes such grids."
        )
    times: list[float] = grid.tolist()
    if not (times[0] <= 1 and times[-1] >= 0 and all(a > b for a, b in itertools.pairwise(times))):
        raise ConfigError(
            f"A time grid must fall strictly from at most 1 (noise) to at least 0 (data), got {times}. Time runs from "
            "noise to data when sampling."
        )
    return times
