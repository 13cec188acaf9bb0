"""Conventions under which somebody else's network would be the velocity of its own samples' path."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from freeflow_core.interfaces import ConvertibleTeacher, Teacher
from freeflow_core.math.calibration import (
    GOOD,
    LEVELS,
    calibrate,
    data_slope,
    deviation,
    draw_noises,
    integrate,
    is_off,
    noise_slope,
    times,
)
from freeflow_core.math.conversions import SIGNED, Convention, Prediction, Sign, TimeDirection, velocity_of
from freeflow_core.math.schedules import SCHEDULES, named_schedule
from freeflow_core.types import Condition, Draws, index_condition

COLLAPSED = 0.05
"""Deviation up to which samples are all alike: such a field is calibrated, and empty."""

_ALIKE = 0.003
_UNMOVED = 0.2
_ALMOST, _SLOPES = 0.995, (0.5, 1.6)
_ALMOST_AMPLIFIED, _SLOPES_AMPLIFIED = 0.98, (-0.5, 4.0)
"""What is divided by 1 - t is divided by little at 0.995, and a trained network's errors with it."""


@dataclass(frozen=True)
class Proposal:
    """A convention that fits: the options to change, and how well it does."""

    settings: dict[str, Any]
    miscalibration: float


@dataclass(frozen=True)
class Probe:
    """What every reading of a network is measured on: N draws with conditions, integrated in ``num_steps`` steps.

    ``levels``: times to look at.
    """

    draws: Draws
    condition: Condition
    num_steps: int
    levels: tuple[float, ...] = LEVELS

    def measure(self, teacher: Teacher) -> float | None:
        """Miscalibration; None for samples all alike, or the noise itself, and for a field that no velocity is."""

        def field(x_t: Tensor, t: Tensor) -> Tensor:
            return teacher.velocity(x_t, t.clamp(*teacher.time_range), self.condition)

        z, noises = draw_noises(teacher.sample_shape, self.draws)
        x = integrate(field, z, self.num_steps)[-1]
        found = calibrate(field, x, {level: noises[level] for level in self.levels}).value
        if self.levels is LEVELS and is_off(data_slope(field, x, noises)):
            return None
        says_something = deviation(x) > COLLAPSED and float((x - z).square().mean().sqrt()) > _UNMOVED
        return found if says_something else None


@torch.no_grad()
def propose(teacher: ConvertibleTeacher, given: float, fine: Probe, coarse: Probe) -> list[Proposal]:
    """Conventions that fit where the given one does not, the best first, those alike with fewest changes first.

    Every candidate is integrated coarsely, and the best ones with more steps and samples.

    Args:
        given: miscalibration of the teacher as it is read; infinite where that says nothing.
        fine, coarse: many samples, and few.
    """
    remaining = plausible(teacher, coarse)
    steps = min(8, fine.num_steps)
    first, second = replace(coarse, num_steps=3, levels=(0.3, 0.7)), replace(coarse, num_steps=steps)
    rounds = ((first, 12), (second, 3), (replace(fine, num_steps=steps), 3))
    scores: list[float] = []
    for probe, keep in rounds:
        measured = [(probe.measure(teacher.with_convention(convention)), convention) for convention in remaining]
        ranked = sorted([pair for pair in measured if pair[0] is not None], key=lambda pair: pair[0] or 0.0)[:keep]
        scores, remaining = [score or 0.0 for score, _ in ranked], [convention for _, convention in ranked]
    # A convention that fits by a hair where the given one misses by a hair would be no finding.
    limit, best = min(GOOD, given / 3), min(scores, default=0.0)
    found = [
        (score > best + _ALIKE, len(changes), score, changes)
        for score, convention in zip(scores, remaining, strict=True)
        if score < limit and (changes := teacher.convention.differences(convention))
    ]
    return [Proposal(changes, score) for *_, score, changes in sorted(found, key=lambda row: row[:3])]


def plausible(teacher: ConvertibleTeacher, probe: Probe) -> list[Convention]:
    """Conventions under which the velocity of almost pure noise follows the noise: one pass each, no path.

    One that misses it by a factor comes with that factor as ``output_scale``, where nothing else but the prediction,
    the direction and the sign is changed.
    """
    given, rows = teacher.convention, torch.arange(max(2, min(len(probe.draws.index) // 2, 256)))
    z = draw_noises(teacher.sample_shape, probe.draws.rows(rows))[0]
    condition = index_condition(probe.condition, rows)
    found: list[Convention] = []
    for candidate in [*candidates(given), given]:
        read = teacher.with_convention(candidate)
        amplified = candidate.prediction in (Prediction.NOISE, Prediction.SCORE)
        t = times(_ALMOST_AMPLIFIED if amplified else _ALMOST, z)
        low, high = _SLOPES_AMPLIFIED if amplified else _SLOPES
        slope = noise_slope(read.velocity(z, t.clamp(*read.time_range), condition), z)
        if candidate is not given and low < slope < high:
            found.append(candidate)
        if candidate.schedule_name != given.schedule_name or candidate.scale != given.scale:
            continue
        own = velocity_of(candidate, torch.zeros_like(z), z, t.double().clamp(*candidate.time_range))
        alone = noise_slope(own, z)
        factor = (1 - alone) / (slope - alone) if slope != alone else 1.0
        factors = [_rounded(factor)] if 1e-3 < factor < 1e3 and abs(factor - 1) > 0.1 else []
        if candidate.prediction in (Prediction.DATA, Prediction.ROTATION):  # at pure noise these say nothing of it
            factors = [0.5, 2.0]
        found += [replace(candidate, output_scale=given.output_scale * f) for f in factors]
    return found


def _rounded(factor: float) -> float:
    """To a usual number within a tenth, else to two digits."""
    usual = [n for k in (1.0, 2.0, 3.0, 4.0, 5.0, 8.0, 10.0, 100.0, 1000.0) for n in (k, 1 / k)]
    nearest = min(usual, key=lambda n: abs(math.log(factor / n)))
    return nearest if abs(math.log(factor / nearest)) < 0.1 else float(f"{factor:.2g}")


def candidates(given: Convention) -> Iterator[Convention]:
    """Every prediction, schedule, direction, sign and usual scale but the given ones; everything else as given."""
    for name, prediction, direction, sign in itertools.product(SCHEDULES, Prediction, TimeDirection, Sign):
        schedule = given.schedule if name == given.schedule_name else named_schedule(name)
        discrete = name.startswith("ddpm")
        unsigned = prediction not in SIGNED and sign is not Sign.TO_NOISE
        backwards = not schedule.reversible and direction is TimeDirection.DATA_AT_1
        if unsigned or backwards or (discrete and prediction is Prediction.VELOCITY):
            continue
        scales = {schedule.default_scale, given.scale, 1.0} | (set() if discrete else {1000.0})
        for scale in sorted(scales if schedule.reversible else {1.0}):
            candidate = replace(
                given,
                prediction=prediction,
                time_direction=direction,
                sign=sign if prediction in SIGNED else None,
                schedule=schedule,
                schedule_name=name,
                time_scale=scale,
                low=None,
                high=None,
            )
            if given.differences(candidate):
                yield candidate
