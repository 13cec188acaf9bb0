"""Noise to samples."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

from freeflow_core.interfaces.build import Buildable
from freeflow_core.interfaces.student import Student
from freeflow_core.interfaces.teacher import Teacher
from freeflow_core.types import Condition, Draws, Guidance, Samples

OnStep: TypeAlias = Callable[[int, Tensor, Tensor], None]
"""``on_step(i, time, x)`` after step i; ``time`` is 0-d, ``x`` (N, *D)."""


class Sampler(Buildable):
    """Base of all samplers. ``grid`` is (K+1,), falling from 1 to 0, float64 on the host."""

    def default_grid(self, num_steps: int) -> Tensor | None:
        """The sampler's own time grid for ``num_steps``, or None for the uniform one."""
        return None


class VelocitySampler(Sampler):
    """Integrates a teacher's velocity."""

    @abstractmethod
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
        """Integrate from ``z`` (N, *D) at grid[0] to grid[-1]."""


class FlowMapSampler(Sampler):
    """Jumps with a student's flow map."""

    @abstractmethod
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
        """Jump from ``z`` (N, *D) at grid[0] along the grid. Raises ``ConfigError`` for steps it cannot do."""


class HybridSampler(Sampler):
    """One student jump, then the teacher."""

    @abstractmethod
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
        """The student jumps from grid[0] to grid[1]; the teacher integrates the rest of the grid."""
