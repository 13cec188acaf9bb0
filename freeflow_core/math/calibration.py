"""Is a field the velocity of the path that starts at its own samples? No data are needed to tell.

v(x_t, t) = E[dx_t/dt | x_t] minimises E|dx_t/dt - v|^2 (Lipman et al. 2022, theorem 2), so with x
drawn by integrating v itself, the residual n - x - v is uncorrelated with every function of x_t. A field whose time,
sign, scale or meaning is read wrongly makes other samples, and a least-squares fit predicts part of their residuals.

One thing no such test can see: the field of N(0, s^2) with time *and* sign reversed is exactly that of N(0, 1 / s^2).
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from freeflow_core.math.flow import linear_interpolate, linear_velocity
from freeflow_core.types import Draws

Field = Callable[[Tensor, Tensor], Tensor]
"""``field(x_t (N, *D), t (N,)) -> v (N, *D)``; times have the states' dtype and device."""

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Times at which a field is looked at."""

GOOD = 0.03
"""Miscalibration of a field that fits: exact ones measure 0.003, trained networks 0.01."""
SUSPICIOUS = 0.05
"""From here on a field is wrong when another reading of it fits; guided fields and weak networks come here too."""
WRONG = 0.3
"""From here on a field is not the velocity of its own path, whatever the reason; a field of zeros measures 0.7."""
ZERO = 1e-3
"""Root mean square up to which a velocity is none at all."""
_ENOUGH_NUMBERS = 2_048
_RUNAWAY = 1e6


class Reading(str, Enum):
    """Ways to read the same network."""

    AS_GIVEN = "v(x, t)"
    SIGN = "-v(x, t)"
    TIME = "v(x, 1 - t)"
    BOTH = "-v(x, 1 - t)"
    HALF = "v(x / 2, t)"
    DOUBLE = "v(2 x, t)"
    ROOT = "v(x, sqrt(t))"
    SQUARE = "v(x, t^2)"

    def of(self, field: Field) -> Field:
        """The field that ``field`` is when it is read this way."""
        sign = -1 if self in (Reading.SIGN, Reading.BOTH) else 1
        factor = {Reading.HALF: 0.5, Reading.DOUBLE: 2.0}.get(self, 1.0)
        power = {Reading.ROOT: 0.5, Reading.SQUARE: 2.0}.get(self, 1.0)
        turned = self in (Reading.TIME, Reading.BOTH)
        return lambda x, t: sign * field(factor * x, (1 - t if turned else t) ** power)


DIAGNOSES: Mapping[Reading, str] = {
    Reading.SIGN: "its sign runs the wrong way: it points from noise to data. Return minus the velocity",
    Reading.TIME: "its time runs the wrong way: it takes t = 0 for noise. Ask it at 1 - t",
    Reading.BOTH: "its time runs the wrong way, and with it the sign: it takes t = 0 for noise and goes to data at "
    "t = 1. Ask it at 1 - t and return minus what it says",
    Reading.HALF: "its states are half as large as those it is asked at. Ask it at x / 2",
    Reading.DOUBLE: "its states are twice as large as those it is asked at. Ask it at 2 x",
    Reading.ROOT: "its time is squared on the way to it. Ask it at sqrt(t)",
    Reading.SQUARE: "its time is the square of the one it is asked at. Ask it at t^2",
}
"""What is wrong with a field of which this reading fits."""


@dataclass(frozen=True)
class Calibration:
    """How much of the residual a linear function of v and x_t predicts, per number; 0 when exact.

    In the units of the noise, whose variance is 1: relative to the residual it would be small for every field that
    runs away.

    Args:
        value: the estimate, without bias; infinite for a field that is not finite.
        error: standard deviation of the estimate.
    """

    value: float
    error: float = 0.0

    @property
    def at_least(self) -> float:
        """``value`` less two standard errors: what cannot be chance."""
        return self.value - 2 * self.error


@dataclass(frozen=True)
class Diagnosis:
    """Calibration of a field as it is given and, where that is suspicious, of its other readings.

    Args:
        size: root mean square of the first step's velocity; near noise it is 1 or more.
        states: (N, *D) at the times of the integration, from noise to samples.
    """

    calibrations: Mapping[Reading, Calibration]
    size: float
    states: list[Tensor]

    @property
    def given(self) -> Calibration:
        """Of the field as it is given."""
        return self.calibrations[Reading.AS_GIVEN]

    @property
    def reason(self) -> str | None:
        """What is certainly wrong, in words; None: nothing is."""
        if self.size < ZERO:
            return "it is zero everywhere: its last layer is untrained, or its weights were not loaded"
        reading, best = min(self.calibrations.items(), key=lambda item: item[1].value)
        fits = best.value < min(GOOD, self.given.value / 5)
        return DIAGNOSES[reading] if self.given.at_least > SUSPICIOUS and fits else None

    @property
    def is_wrong(self) -> bool:
        """Whether the field cannot be the velocity of its own path."""
        return self.reason is not None or self.given.at_least > WRONG


def enough_rows(shape: tuple[int, ...], numbers: int = _ENOUGH_NUMBERS) -> int:
    """Samples that hold about ``numbers`` numbers, at least 8: one look then costs 168 rows, of small states more."""
    return max(8, min(512, math.ceil(numbers / math.prod(shape))))


@torch.no_grad()
def diagnose(field: Field, shape: tuple[int, ...], draws: Draws, num_steps: int = 8) -> Diagnosis:
    """Integrate ``field`` in midpoint steps of two passes and calibrate it, in other readings where it does not fit.

    ``draws``: N rows, see :func:`enough_rows`.
    """
    z, noises = draw_noises(shape, draws)
    states = integrate(field, z, num_steps)
    calibrations = {Reading.AS_GIVEN: calibrate(field, states[-1], noises)}
    size = num_steps * float((states[1] - z).square().mean()) ** 0.5
    if size >= ZERO and calibrations[Reading.AS_GIVEN].at_least > SUSPICIOUS:
        for reading in list(Reading)[1:]:
            read = reading.of(field)
            calibrations[reading] = calibrate(read, integrate(read, z, num_steps)[-1], noises)
    return Diagnosis(calibrations, size, states)


def draw_noises(shape: tuple[int, ...], draws: Draws) -> tuple[Tensor, dict[float, Tensor]]:
    """Noise (N, *D) to start from, and noise for every level."""
    noises = {level: draws.noise(f"calibration-{level}", shape) for level in LEVELS}
    return draws.noise("calibration-prior", shape), noises


def integrate(field: Field, z: Tensor, num_steps: int) -> list[Tensor]:
    """States (N, *D) at the times 1, 1 - 1/K, ..., 0, from ``z``, by the midpoint rule: it never asks at t = 0."""
    grid = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64).tolist()
    states = [z]
    for t, s in itertools.pairwise(grid):
        x = states[-1]
        middle = x + (s - t) / 2 * field(x, times(t, x))
        states.append(x + (s - t) * field(middle, times((t + s) / 2, x)))
    return states


def calibrate(field: Field, x: Tensor, noises: Mapping[float, Tensor]) -> Calibration:
    """The worst over times of the path from the field's own samples ``x`` (N, *D) to ``noises`` (N, *D) by time."""
    found = []
    for level, noise in noises.items():
        t = times(level, x)
        x_t = linear_interpolate(x, noise, t)
        found.append(miscalibration(field(x_t, t), x_t, linear_velocity(x, noise)))
    return max(found, key=lambda calibration: calibration.at_least)


def miscalibration(v: Tensor, x_t: Tensor, target: Tensor) -> Calibration:
    """Least squares of the residual ``target`` - v (N, *D) on v, x_t and a constant state, at one time; N >= 2.

    Only products of different rows count, so that neither chance nor what the numbers of one row have in common adds.
    """
    v, x_t = v.flatten(1).double(), x_t.flatten(1).double()
    residual = target.flatten(1).double() - v
    if not bool(residual.abs().max() < _RUNAWAY):  # NaN included
        return Calibration(math.inf)
    columns = torch.stack([part - part.mean(0) for part in (v, x_t)], 2)
    gram = torch.einsum("ndk,ndl->kl", columns, columns)
    gram = gram + (1e-9 * gram.diagonal().mean() + 1e-30) * torch.eye(2, dtype=gram.dtype, device=gram.device)
    projections = torch.einsum("ndk,nd->nk", columns, residual - residual.mean(0))
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(gram), projections.T, upper=False).T
    num, dimensions = residual.shape
    value, variance = 0.0, 0.0
    for part, scale in ((whitened, 1.0), (residual, 1 / num)):
        # Sums over pairs of different rows of their product, and of its square.
        own = part.square().sum(1)
        products = part @ part.T if num < dimensions else part.T @ part
        factor = scale / ((num - 1) * dimensions)
        value += float(part.sum(0).square().sum() - own.sum()) * factor
        variance += 2 * float(products.square().sum() - own.square().sum()) * factor**2
    return Calibration(value, variance**0.5)


def times(t: float, like: Tensor) -> Tensor:
    """``t`` (N,) in the dtype and on the device of the states, as in training."""
    return torch.full((len(like),), t, dtype=like.dtype, device=like.device)
