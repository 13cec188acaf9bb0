"""Does a velocity field run the way freeflow's convention says: t = 0 data, t = 1 noise, v = dx/dt?

A field v(x_t, t) = E[dx_t/dt | x_t] of the path from its own data to noise passes a test that needs no data: integrate
it from noise at t = 1 to samples x at t = 0, noise those samples anew, and the residual d = dx_t/dt - v(x_t, t) must be
orthogonal to every function of x_t (Lipman et al. 2022, theorem 2: v minimises E|dx_t/dt - v|^2). Three such functions
are looked at: v itself, x_t, and a constant. A field whose sign or time is reversed makes other samples, or none, and
fails; which of the four readings passes says what is wrong.

One thing cannot be told from the field alone: that of N(0, s^2) with sign *and* time reversed is, exactly, the field of
N(0, 1 / s^2). Any mean, or more than one mode, tells them apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

import torch
from torch import Tensor

from freeflow_core.interfaces import Teacher
from freeflow_core.math.flow import linear_interpolate, linear_velocity
from freeflow_core.types import Condition, Draws

Field: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""``field(x_t (N, *D), t (N,)) -> v (N, *D)``."""

_LEVELS = (0.15, 0.4, 0.65, 0.9, 1.0)


class Reading(str, Enum):
    """Four ways to read the same network."""

    AS_GIVEN = "v(x, t)"
    SIGN = "-v(x, t)"
    TIME = "v(x, 1 - t)"
    BOTH = "-v(x, 1 - t)"


WRONG: Mapping[Reading, str] = {
    Reading.SIGN: "its sign runs the wrong way: it points from noise to data. Return minus the velocity",
    Reading.TIME: "its time runs the wrong way: it takes t = 0 for noise. Ask it at 1 - t",
    Reading.BOTH: "its time runs the wrong way, and with it the sign: it takes t = 0 for noise and goes to data at "
    "t = 1. Ask it at 1 - t and return minus what it says",
}
"""What a reading that passes says of the field as it is given."""


@dataclass(frozen=True)
class Direction:
    """Inconsistency of the field as it is given, and of the other readings where that was too large.

    0 is exact; 1 is a field that explains nothing of its own samples' path.
    """

    errors: Mapping[Reading, float]
    tolerance: float

    @property
    def right(self) -> bool:
        """Whether the field as given is the velocity of its own path."""
        return self.errors[Reading.AS_GIVEN] <= self.tolerance

    @property
    def diagnosis(self) -> str:
        """What is wrong, in words."""
        passing = [reading for reading, error in self.errors.items() if error <= self.tolerance]
        if self.right or not passing:
            return (
                "no reading of its sign and time is a velocity of its own path: look at the scale of its states, "
                "at what it predicts (velocity, noise or data), and at its path"
            )
        return WRONG[min(passing, key=lambda reading: self.errors[reading])]


@torch.no_grad()
def check_direction(
    teacher: Teacher, condition: Condition, draws: Draws, *, tolerance: float = 0.12, num_steps: int = 32
) -> Direction:
    """Measure the unguided field of ``teacher``; the other readings only when it fails.

    Args:
        condition: N conditions.
        draws: N rows; the error's own noise is about 1 / sqrt(N * dimensions).
        tolerance: greatest inconsistency that passes; a good network, or an exact field asked for 2,048 numbers,
            stays below 0.07.
        num_steps: of Heun's method.
    """
    low, high = teacher.time_range
    readings: Mapping[Reading, Field] = {
        Reading.AS_GIVEN: lambda x, t: teacher.velocity(x, t.clamp(low, high), condition),
        Reading.SIGN: lambda x, t: -teacher.velocity(x, t.clamp(low, high), condition),
        Reading.TIME: lambda x, t: teacher.velocity(x, (1 - t).clamp(low, high), condition),
        Reading.BOTH: lambda x, t: -teacher.velocity(x, (1 - t).clamp(low, high), condition),
    }
    errors: dict[Reading, float] = {}
    for reading, field in readings.items():
        errors[reading] = inconsistency(field, teacher.sample_shape, draws, num_steps)
        if errors[Reading.AS_GIVEN] <= tolerance:
            break
    return Direction(errors, tolerance)


def inconsistency(field: Field, shape: tuple[int, ...], draws: Draws, num_steps: int) -> float:
    """Greatest share of the path's derivative that a function of x_t still finds in the residual; NaN counts as 1."""
    z = draws.noise("direction-prior", tuple(shape))
    x = _integrate(field, z, num_steps)
    worst = 0.0
    for level in _LEVELS:
        t = torch.full((len(z),), level, dtype=z.dtype, device=z.device)
        noise = draws.noise(f"direction-{level}", tuple(shape))
        x_t, target = linear_interpolate(x, noise, t), linear_velocity(x, noise)
        v = field(x_t, t)
        error = _share(target - v, v, x_t, target)
        worst = max(worst, error if error == error else 1.0)
    return worst


def _integrate(field: Field, z: Tensor, num_steps: int) -> Tensor:
    """Heun's method from t = 1 to t = 0."""
    times = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64).tolist()
    x = z
    for t, s in itertools.pairwise(times):
        v = field(x, torch.full((len(z),), t, dtype=z.dtype, device=z.device))
        ahead = field(x + (s - t) * v, torch.full((len(z),), s, dtype=z.dtype, device=z.device))
        x = x + (s - t) / 2 * (v + ahead)
    return x


def _share(residual: Tensor, v: Tensor, x_t: Tensor, target: Tensor) -> float:
    residual, v, x_t, target = (part.flatten(1).double() for part in (residual, v, x_t, target))
    n, size = len(residual), target.norm()
    along = [abs(float((residual * part).sum() / (size * part.norm()).clamp_min(1e-300))) for part in (v, x_t)]
    # |mean|^2 without its bias: the mean over pairs of different rows.
    pairs = (residual.sum(0).square().sum() - residual.square().sum()) / (n * (n - 1))
    mean = float((pairs.clamp_min(0) / (size.square() / n)).sqrt())
    return max(*along, mean)
