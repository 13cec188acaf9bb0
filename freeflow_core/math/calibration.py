"""Is a field the velocity of the path that starts at its own samples? No data are needed to tell.

v(x_t, t) = E[dx_t/dt | x_t] minimises E|dx_t/dt - v|^2 (Lipman et al. 2022, theorem 2), so with x
drawn by integrating v itself, the residual n - x - v is uncorrelated with every function of x_t. A field whose time,
sign, scale or meaning is read wrongly makes other samples, and a least-squares fit predicts part of their residuals.

One thing no such test can see: the field of N(0, s^2) with time *and* sign reversed is exactly that of N(0, 1 / s^2).
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from freeflow_core.math.flow import expand_times, linear_interpolate, linear_velocity
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
_OFF = 0.4
"""How far from 1 the data slope of a right field may be: exact ones measure 0.9 to 1.1, predicted noise 0.2 to 0.6."""
_NEAR_DATA = 0.02
_SPREAD = 0.15
_ENOUGH_NUMBERS = 2_048
_TWO_LEVELS, _LIKELY, _CLOSER = (0.3, 0.7), 6, 3
"""So many readings, by their slope, are looked at coarsely, at two times; so many then as the given one is."""
_RUNAWAY = 1e6
_ALIKE = 0.01


class Reading(str, Enum):
    """Ways to read the same network; k is the slope of its answer to pure noise on the noise."""

    AS_GIVEN = "v(x, t)"
    SIGN = "-v(x, t)"
    TIME = "v(x, 1 - t)"
    BOTH = "-v(x, 1 - t)"
    HALF = "v(x / 2, t)"
    DOUBLE = "v(2 x, t)"
    ROOT = "v(x, sqrt(t))"
    SQUARE = "v(x, t^2)"
    THOUSAND = "v(x, 1000 t)"
    THOUSANDTH = "v(x, t / 1000)"
    SCALED = "v(x, t) / k"
    LESS = "v(x, t) - x"
    PLUS = "v(x, t) + x"
    NOISE = "(v(x, t) - x) / (1 - t)"
    DATA = "(x - v(x, t)) / t"
    SCORE = "-(x + t v(x, t)) / (1 - t)"

    def of(self, field: Field, time_range: tuple[float, float] = (0.0, 1.0), slope: float = 1.0) -> Field:
        """The field that ``field`` is when it is read this way; it is asked within ``time_range`` alone."""
        sign = -1 if self in (Reading.SIGN, Reading.BOTH) else 1
        factor = {Reading.HALF: 0.5, Reading.DOUBLE: 2.0}.get(self, 1.0)
        power = {Reading.ROOT: 0.5, Reading.SQUARE: 2.0}.get(self, 1.0)
        scale = {Reading.THOUSAND: 1e3, Reading.THOUSANDTH: 1e-3}.get(self, 1.0)
        turned = self in (Reading.TIME, Reading.BOTH)

        def read(x: Tensor, t: Tensor) -> Tensor:
            if self in _PREDICTIONS:
                t = t.clamp(1 - _NOT_ALL, _NOT_ALL)  # what is divided by t or 1 - t is held away from the ends
            answer = field(factor * x, scale * ((1 - t if turned else t) ** power).clamp(*time_range))
            if self not in _PREDICTIONS:
                added = {Reading.LESS: -1, Reading.PLUS: 1}.get(self, 0)
                return sign * answer / (slope if self is Reading.SCALED else 1) + added * x
            t = expand_times(t, x)
            if self is Reading.DATA:
                return (x - answer) / t
            return ((answer if self is Reading.NOISE else -t * answer) - x) / (1 - t)

        return read


_PREDICTIONS = (Reading.NOISE, Reading.DATA, Reading.SCORE)
_NOT_ALL = 0.98
DIAGNOSES: Mapping[Reading, str] = {
    Reading.SIGN: "its sign runs the wrong way: it points from noise to data. Return minus the velocity",
    Reading.TIME: "its time runs the wrong way: it takes t = 0 for noise. Ask it at 1 - t",
    Reading.BOTH: "its time runs the wrong way, and with it the sign: it takes t = 0 for noise and goes to data at "
    "t = 1. Ask it at 1 - t and return minus what it says",
    Reading.HALF: "its states are half as large as those it is asked at. Ask it at x / 2",
    Reading.DOUBLE: "its states are twice as large as those it is asked at. Ask it at 2 x",
    Reading.ROOT: "its time is squared on the way to it. Ask it at sqrt(t)",
    Reading.SQUARE: "its time is the square of the one it is asked at. Ask it at t^2",
    Reading.THOUSAND: "its time runs from 0 to 1000. Ask it at 1000 t",
    Reading.THOUSANDTH: "its time is multiplied by 1000 on the way to it. Ask it at t",
    Reading.SCALED: "its answer is {slope:.2g} times the velocity. Divide it by that",
    Reading.LESS: "its answer is the velocity plus the state. Return its answer - x",
    Reading.PLUS: "its answer is the velocity less the state. Return its answer + x",
    Reading.NOISE: "it predicts the noise, not the velocity. Return (its answer - x) / (1 - t)",
    Reading.DATA: "it predicts the data, not the velocity. Return (x - its answer) / t",
    Reading.SCORE: "it predicts the score, not the velocity. Return -(x + t times its answer) / (1 - t)",
}
"""What is wrong with a field of which this reading fits."""
_MILD = (Reading.SCALED, *_PREDICTIONS)
"""Readings that turn a field of nearly nothing into the exact one of a single point: samples must differ."""
_DIFFERENT = 0.25


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
        slope: of the velocity of pure noise on the noise, 1 for a right one; measured where it is suspicious.
        data_slope: of minus the velocity close to the samples on them, 1 for a right one and for samples all alike.
    """

    calibrations: Mapping[Reading, Calibration]
    size: float
    states: list[Tensor]
    slope: float = 1.0
    data_slope: float = 1.0

    @property
    def given(self) -> Calibration:
        """Of the field as it is given."""
        return self.calibrations[Reading.AS_GIVEN]

    @property
    def measured(self) -> str:
        """What was found and what a right field has, in words."""
        hidden = self.is_off and self.given.at_least <= SUSPICIOUS
        near = f"; near its samples it has slope {-self.data_slope:.2f} on them, -1 expected" if hidden else ""
        return f"miscalibration {self.given.value:.2g}, up to {GOOD:g} expected{near}"

    @property
    def reason(self) -> str | None:
        """What is certainly wrong, in words; None: nothing is."""
        if self.size < ZERO:
            return "it is zero everywhere: its last layer is untrained, or its weights were not loaded"
        return "; or ".join(DIAGNOSES[reading].format(slope=self.slope) for reading in self.fitting) or None

    @property
    def fitting(self) -> tuple[Reading, ...]:
        """Readings that fit where the given one does not, as well as the best: chance cannot tell them apart."""
        if not self.is_suspicious:
            return ()
        best = min(calibration.value for calibration in self.calibrations.values())
        limit = min(GOOD, math.inf if self.is_off else self.given.value / 5, best + _ALIKE)
        others = [reading for reading in list(Reading)[1:] if reading in self.calibrations]
        return tuple(reading for reading in others if self.calibrations[reading].value < limit)

    @property
    def is_off(self) -> bool:
        """Whether its data slope is that of no velocity, though little of the residual may show it."""
        return is_off(self.data_slope)

    @property
    def is_suspicious(self) -> bool:
        """Whether other readings are worth a look."""
        return self.given.at_least > SUSPICIOUS or self.is_off

    @property
    def is_wrong(self) -> bool:
        """Whether the field cannot be the velocity of its own path."""
        return self.reason is not None or self.given.at_least > WRONG


def enough_rows(shape: tuple[int, ...], numbers: int = _ENOUGH_NUMBERS) -> int:
    """Samples that hold about ``numbers`` numbers, at least 8: one look then costs 176 rows, of small states more."""
    return max(8, min(512, math.ceil(numbers / math.prod(shape))))


@torch.no_grad()
def diagnose(
    field: Field,
    shape: tuple[int, ...],
    draws: Draws,
    num_steps: int = 8,
    *,
    time_range: tuple[float, float] = (0.0, 1.0),
    readings: bool = True,
) -> Diagnosis:
    """Integrate ``field`` in midpoint steps of two passes and calibrate it, in other readings where it does not fit.

    Args:
        draws: N rows, see :func:`enough_rows`.
        time_range: times within which the field is asked.
        readings: look at other readings where the given one is suspicious.
    """
    z, noises = draw_noises(shape, draws)
    given = Reading.AS_GIVEN.of(field, time_range)
    states = integrate(given, z, num_steps)
    calibrations = {Reading.AS_GIVEN: calibrate(given, states[-1], noises)}
    size = num_steps * float((states[1] - z).square().mean()) ** 0.5
    first = Diagnosis(calibrations, size, states, data_slope=data_slope(given, states[-1], noises))
    if not readings or size < ZERO or not first.is_suspicious:
        return first
    slope = noise_slope(given(z, times(1.0, z)), z)
    every = [reading for reading in list(Reading)[1:] if reading is not Reading.SCALED or 0.02 < slope < 50]
    slopes = {r: noise_slope(r.of(field, time_range, slope)(z, times(_NOT_ALL, z)), z) for r in every}
    left = sorted(every, key=lambda r: abs(slopes[r] - 1) if math.isfinite(slopes[r]) else math.inf)[:_LIKELY]
    for steps, levels in ((4, _TWO_LEVELS), (min(num_steps, 8), LEVELS)):
        found: dict[Reading, Calibration] = {}
        for reading in left:
            read = reading.of(field, time_range, slope)
            x = integrate(read, z, steps)[-1]
            if reading in _MILD and deviation(x) <= _DIFFERENT:
                continue
            if levels is LEVELS and first.is_off and is_off(data_slope(read, x, noises)):
                continue
            found[reading] = calibrate(read, x, {level: noises[level] for level in levels})
        left = sorted(found, key=lambda reading: found[reading].value)[:_CLOSER]
    calibrations |= {reading: found[reading] for reading in left}
    return replace(first, calibrations=calibrations, slope=slope)


def noise_slope(v: Tensor, z: Tensor) -> float:
    """Of an answer (N, *D) to pure noise ``z`` (N, *D): 1 for a velocity, v = z - E[x], with N >= 2."""
    centred = z - z.mean(0)
    return float(((v - v.mean(0)) * centred).sum() / centred.square().sum())


def data_slope(field: Field, x: Tensor, noises: Mapping[float, Tensor]) -> float:
    """Of what minus the velocity near a field's own samples ``x`` (N, *D) says of them, on them: 1 for a velocity.

    v = E[n - x | x_t] gives E[(n - v) x_t] = E[x x_t], so that this is a ratio of the two; a prediction of the noise,
    which hardly changes close to data, has nearly 0, however small its miscalibration. 1 for samples all alike.
    """
    if not _SPREAD < deviation(x) < _RUNAWAY:
        return 1.0
    noise, t = noises[LEVELS[0]], times(_NEAR_DATA, x)
    x_t = linear_interpolate(x, noise, t)
    centred = x_t - x_t.mean(0)
    return float(((noise - field(x_t, t)) * centred).sum() / (x * centred).sum())


def is_off(slope: float) -> bool:
    """Whether a :func:`data_slope` is that of no velocity."""
    return not abs(slope - 1) <= _OFF  # NaN included


def deviation(x: Tensor) -> float:
    """Of samples (N, *D) around their mean."""
    return float((x - x.mean(0)).square().mean().sqrt())


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
