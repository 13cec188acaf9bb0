"""Noise to samples."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Generic, TypeAlias, TypeVar

from torch import Tensor

from freeflow_core.interfaces.build import Buildable
from freeflow_core.interfaces.student import Student
from freeflow_core.interfaces.teacher import Teacher
from freeflow_core.types import Condition, Draws, Guidance, Samples

OnStep: TypeAlias = Callable[[int, Tensor, Tensor], None]
"""``on_step(i, time, x)`` after step i; ``time`` is 0-d, ``x`` (N, *D)."""


ModelT = TypeVar("ModelT", contravariant=True)


class Sampler(Buildable, Generic[ModelT]):
    """Noise to samples; the three kinds below differ in the model they ask."""

    def default_grid(self, num_steps: int) -> Tensor | None:
        """The sampler's own time grid for ``num_steps``, or None for the uniform one."""
        return None

    @abstractmethod
    def sample(
        self,
        model: ModelT,
        z: Tensor,
        grid: Tensor,
        condition: Condition,
        guidance: Guidance,
        draws: Draws | None = None,
        on_step: OnStep | None = None,
    ) -> Samples:
        """From ``z`` (N, *D) at grid[0] to grid[-1]. Raises ``ConfigError`` for steps that the model cannot do.

        ``grid`` is (K+1,), falling from 1 to 0, float64 on the host.
        """


class VelocitySampler(Sampler[Teacher]):
    """Integrates a teacher's velocity."""


class FlowMapSampler(Sampler[Student]):
    """Jumps along the grid with a student's flow map."""


class HybridSampler(Sampler[tuple[Student, Teacher]]):
    """The student jumps from grid[0] to grid[1]; the teacher integrates the rest of the grid."""
