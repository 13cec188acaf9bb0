"""Samplers that integrate a teacher's velocity: Euler, Heun, Dormand-Prince; and what all samplers share."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import Sampler, Student, Teacher, VelocitySampler
from freeflow_core.interfaces.sampler import OnStep
from freeflow_core.math.flow import like_states, mean_square, uniform_grid
from freeflow_core.types import Condition, Draws, Guidance, Samples
from freeflow_samplers.config import AdaptiveConfig, EulerConfig, GridConfig, HeunConfig

_ROUNDING = 1e-12
"""A grid time may miss an interval's end by rounding alone (0.3 against 0.30000000000000004); it still counts."""


class SteppingSampler(Sampler[Any]):
    """Base: a sampler is the states that it goes through.

    Its own grid has times t' = shift t / (1 + (shift - 1) t) of the uniform t (Esser et al. 2024, eq. 23).
    """

    def __init__(self, config: GridConfig) -> None:
        self._config = config

    def default_grid(self, num_steps: int) -> Tensor:
        """(num_steps + 1,) times from 1 to 0. Raises ``ValueError`` unless num_steps >= 1."""
        t, shift = uniform_grid(num_steps), self._config.shift
        return shift * t / (1 + (shift - 1) * t)

    @abstractmethod
    def states(self, model: Any, x: Tensor, times: list[float], batch: SampledBatch) -> Iterator[Tensor]:
        """The state (N, *D) at each of ``times[1:]``, from ``x`` (N, *D) at ``times[0]``.

        Where nobody watches the batch, the state at ``times[-1]`` is enough.
        """

    @torch.no_grad()
    def sample(
        self,
        model: Any,
        z: Tensor,
        grid: Tensor,
        condition: Condition,
        guidance: Guidance,
        draws: Draws | None = None,
        on_step: OnStep | None = None,
    ) -> Samples:
        if guidance.weight.shape != z.shape[:1]:
            raise ValueError(f"guidance needs one weight for each of {len(z)} samples, got {guidance.weight.shape}")
        x, batch = z, SampledBatch(z.dtype, condition, guidance, draws, on_step is not None)
        for i, x in enumerate(self.states(model, z, grid_times(grid), batch)):
            if on_step is not None:
                on_step(i, grid[i + 1], x)
        return Samples(x.to(z.dtype), batch.evaluations)


@final
@dataclass
class SampledBatch:
    """What a network is told beside states and times, and how often it was asked.

    Args:
        dtype: of the noise.
        condition: N conditions.
        guidance: weights (N,) on the host, and the interval, closed at both ends.
        draws: of fresh noise, or None.
        watched: whether somebody looks at the states on the way.
        evaluations: of networks, per sample so far; a guided sample's evaluation counts two.
    """

    dtype: torch.dtype
    condition: Condition
    guidance: Guidance
    draws: Draws | None
    watched: bool
    evaluations: float = 0.0

    def start(self, network: nn.Module, x: Tensor, state_dtype: str) -> Tensor:
        """``x`` in the precision configured for the state, raised to float64 for a float64 network."""
        return x.to(torch.promote_types(getattr(torch, state_dtype), self.network_dtype(network)))

    def network_dtype(self, network: nn.Module) -> torch.dtype:
        """The dtype of a network's weights; a network without weights computes in the dtype of the noise."""
        return next((p.dtype for p in network.parameters() if p.is_floating_point()), self.dtype)

    def weights(self, time: float) -> Tensor:
        """(N,) guidance weights at ``time``, on the host; 1 outside the interval."""
        weight, low, high = self.guidance.weight, self.guidance.low, self.guidance.high
        times = torch.full((len(weight),), time, dtype=torch.float64)
        return Guidance(weight, low - _ROUNDING, high + _ROUNDING).at(times)

    def velocity(self, teacher: Teacher, x: Tensor, time: float, weight: Tensor) -> Tensor:
        """v (N, *D) in the dtype of ``x``, guided by ``weight`` (N,). Nothing is read back to the host."""
        self.evaluations += 1 + float((weight != 1).double().mean())
        state = x.to(self.network_dtype(teacher))
        return teacher.guided_velocity(state, network_times(time, state), self.condition, weight).to(x.dtype)

    def jump(self, student: Student, x: Tensor, t: float, s: float) -> Tensor:
        """X(x, t, s) (N, *D) in the student's dtype, at least float32."""
        self.evaluations += 1
        x = x.to(torch.promote_types(self.network_dtype(student), torch.float32))
        weight = like_states(self.guidance.weight, x)
        return student.flow_map(x, network_times(t, x), network_times(s, x), self.condition, weight)


@final
class EulerSampler(SteppingSampler, VelocitySampler):
    """x_s = x_t + (s - t) v(x_t, t): first order, one evaluation per step, two where guided."""

    _config: EulerConfig

    def states(self, model: Teacher, x: Tensor, times: list[float], batch: SampledBatch) -> Iterator[Tensor]:
        x = batch.start(model, x, self._config.state_dtype)
        for t, s in itertools.pairwise(times):
            x = x + (s - t) * batch.velocity(model, x, t, batch.weights(t))
            yield x


@final
class HeunSampler(SteppingSampler, VelocitySampler):
    """Second order, two evaluations per step, each counted twice where guided (Karras et al. 2022, algorithm 1).

    With ``decide_at: step-start`` the start of a step decides about guidance for both of its slopes, so that a step
    across an interval's end integrates one smooth field; with ``evaluation`` each slope is guided by its own time.
    With ``final_euler``, ``state_dtype: float64`` and ``decide_at: step-start`` it is the sampler of REPA and SiT.
    """

    _config: HeunConfig

    def states(self, model: Teacher, x: Tensor, times: list[float], batch: SampledBatch) -> Iterator[Tensor]:
        x = batch.start(model, x, self._config.state_dtype)
        for i, (t, s) in enumerate(itertools.pairwise(times)):
            weight = batch.weights(t)
            v = batch.velocity(model, x, t, weight)
            ahead = x + (s - t) * v
            if self._config.final_euler and i == len(times) - 2:
                x = ahead
            else:
                weight = weight if self._config.decide_at == "step-start" else batch.weights(s)
                x = x + (s - t) / 2 * (v + batch.velocity(model, ahead, s, weight))
            yield x


@final
class AdaptiveSampler(SteppingSampler, VelocitySampler):
    """Dormand-Prince 5(4): each step keeps the root-mean-square error of the *worst sample* within the tolerance.

    The grid gives the start, the end, and the times ``on_step`` is told about (interpolated). All samples of a batch
    share the solver's own steps, so a result depends, within the tolerance, on the samples beside it; the host waits
    for the device after every step. Guidance jumps at its interval's ends; the path is cut there, and each piece is
    guided throughout or not at all.
    """

    _config: AdaptiveConfig

    def states(self, model: Teacher, x: Tensor, times: list[float], batch: SampledBatch) -> Iterator[Tensor]:
        x = batch.start(model, x, self._config.state_dtype)
        start, end = times[0], times[-1]
        cuts = {cut for cut in (batch.guidance.low, batch.guidance.high) if end < cut < start}
        for top, bottom in itertools.pairwise(sorted({start, end, *cuts}, reverse=True)):
            told = [t for t in (times[1:] if batch.watched else [end]) if top > t >= bottom]
            stops = [top, *told] if told[-1:] == [bottom] else [top, *told, bottom]
            path = self._integrate(model, x, stops, batch)
            yield from path[1 : len(told) + 1]
            x = path[-1]

    def _integrate(self, teacher: Teacher, x: Tensor, stops: list[float], batch: SampledBatch) -> Tensor:
        """States at ``stops`` (S, N, *D), with or without guidance as the middle of the piece has it."""
        weight = batch.weights((stops[0] + stops[-1]) / 2)
        t = torch.tensor(stops, dtype=torch.float64, device=x.device)
        config = self._config
        from torchdiffeq import odeint  # not for the other samplers: it loads scipy's integrators

        try:
            return odeint(
                lambda time, state: batch.velocity(teacher, state, float(time), weight),
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


def network_times(time: float, x: Tensor) -> Tensor:
    """``time`` (N,) as networks get it in training: beside the states, in their precision but no less than float32."""
    return torch.full((len(x),), time, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)


def grid_times(grid: Tensor) -> list[float]:
    """The grid as numbers.

    Raises ``ConfigError`` unless it is (K+1,) with K >= 1, float64, finite, strictly falling and within [0, 1].
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
