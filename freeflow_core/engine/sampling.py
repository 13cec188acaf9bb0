"""Samples by index: the noise and the condition of sample i are a function of (seed, i) alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import (
    Codec,
    FlowMapSampler,
    HybridSampler,
    Sampler,
    Student,
    Teacher,
    VelocitySampler,
)
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.math.time_grids import jump_grid, uniform_grid
from freeflow_core.types import Condition, Guidance, Samples


@dataclass(frozen=True)
class SampleBatch:
    """Samples of ``index`` (N,): noise ``z``, states ``x`` (N, *D), uint8 ``images``, and what they cost."""

    index: Tensor
    z: Tensor
    x: Tensor
    images: Tensor
    condition: Condition
    guidance: Guidance
    num_evaluations: float
    seconds: float


@final
class Generator:
    """Draws samples with one sampler and one model.

    Args:
        sampler: any of the three kinds; it decides which of ``teacher`` and ``student`` is used.
        num_steps: steps of the sampler; a hybrid's count the teacher's, after the jump to ``jump_to``.
        labels: fixed classes, cycled by index; None for all classes in turn.

    Raises:
        ConfigError: the sampler needs a model that is not there.
    """

    def __init__(
        self,
        sampler: Sampler,
        num_steps: int,
        codec: Codec,
        *,
        teacher: Teacher | None = None,
        student: Student | None = None,
        seed: int,
        guidance_weight: float = 1.0,
        guidance_low: float = 0.0,
        guidance_high: float = 1.0,
        jump_to: float = 0.5,
        labels: tuple[int, ...] | None = None,
    ) -> None:
        self.sampler = sampler
        self.codec = codec
        self.seed = seed
        self.model: Any = _choose_model(sampler, teacher, student)
        self._parts = self.model if isinstance(self.model, tuple) else (self.model,)
        own_grid = sampler.default_grid(num_steps)
        self.grid = uniform_grid(num_steps) if own_grid is None else own_grid
        if isinstance(sampler, HybridSampler):
            self.grid = jump_grid(jump_to, num_steps)
        self._weight, self._low, self._high = guidance_weight, guidance_low, guidance_high
        self._labels = labels
        self._teacher = teacher

    def batches(self, start: int, num: int, batch_size: int) -> Iterator[SampleBatch]:
        """Samples ``start`` ... ``start + num - 1``."""
        for first in range(start, start + num, batch_size):
            yield self.batch(torch.arange(first, min(first + batch_size, start + num)))

    @torch.no_grad()
    def batch(self, index: Tensor) -> SampleBatch:
        """The samples ``index`` (N,)."""
        reference = next(self._parts[0].parameters(), None)
        buffers = next(self._parts[0].buffers(), None) if reference is None else reference
        device = torch.device("cpu") if buffers is None else buffers.device
        dtype = torch.float32 if buffers is None else buffers.dtype
        draws = PhiloxDraws(self.seed, index, device=device, dtype=dtype)
        z = draws.noise("prior", tuple(self._parts[0].sample_shape))
        condition = self._condition(index)
        guidance = Guidance(torch.full((len(index),), self._weight, dtype=torch.float64), self._low, self._high)
        _synchronize(device)
        began = time.perf_counter()
        samples: Samples = self.sampler.sample(self.model, z, self.grid, condition, guidance, draws)  # type: ignore[attr-defined]
        images = self.codec.decode(samples.x) if samples.x.ndim == 4 else samples.x
        _synchronize(device)
        seconds = time.perf_counter() - began
        return SampleBatch(index, z, samples.x, images, condition, guidance, samples.num_evaluations, seconds)

    def _condition(self, index: Tensor) -> Condition:
        num_classes = self._parts[0].num_classes
        if self._labels is not None:
            if not num_classes or any(not 0 <= label < num_classes for label in self._labels):
                raise ConfigError(
                    f"Labels {list(self._labels)} are out of range: the model has {num_classes or 'no'} classes"
                    + (f", 0 to {num_classes - 1}." if num_classes else ".")
                )
            return torch.tensor(self._labels)[index % len(self._labels)]
        if self._teacher is not None:
            return self._teacher.balanced_condition(index)
        return index % num_classes if num_classes else None


def _choose_model(sampler: Sampler, teacher: Teacher | None, student: Student | None) -> Any:
    name = type(sampler).__name__
    if isinstance(sampler, VelocitySampler):
        if teacher is None:
            raise ConfigError(f"The sampler {name} integrates a teacher, but none was given.")
        return teacher
    if student is None:
        raise ConfigError(f"The sampler {name} needs a student, but none was given.")
    if isinstance(sampler, FlowMapSampler):
        return student
    if teacher is None:
        raise ConfigError(f"The sampler {name} goes on with a teacher after the student's jump, but none was given.")
    return student, teacher


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
