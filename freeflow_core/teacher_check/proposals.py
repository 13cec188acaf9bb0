"""Other ways to read a network, and which of them fits."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from freeflow_core.interfaces import ConvertibleTeacher, Teacher
from freeflow_core.math.calibration import GOOD, LEVELS, calibrate, draw_noises, integrate
from freeflow_core.math.conversions import SIGNED, Convention, Prediction, Sign, TimeDirection
from freeflow_core.math.schedules import SCHEDULES, named_schedule
from freeflow_core.types import Condition, Draws

COLLAPSED = 0.05
"""Deviation up to which samples are all alike: such a field is calibrated, and empty."""

_ALIKE = 0.003
_UNMOVED = 0.2


@dataclass(frozen=True)
class Proposal:
    """A convention that fits: the options to change, and how well it does."""

    settings: dict[str, Any]
    miscalibration: float


@dataclass(frozen=True)
class Probe:
    """What every reading of a network is measured on: N draws with conditions, integrated in ``num_steps`` steps.

    Args:
        levels: times to look at.
    """

    draws: Draws
    condition: Condition
    num_steps: int
    levels: tuple[float, ...] = LEVELS

    def measure(self, teacher: Teacher) -> float | None:
        """Miscalibration; None for samples that are all alike, or the noise itself."""

        def field(x_t: Tensor, t: Tensor) -> Tensor:
            return teacher.velocity(x_t, t.clamp(*teacher.time_range), self.condition)

        z, noises = draw_noises(teacher.sample_shape, self.draws)
        x = integrate(field, z, self.num_steps)[-1]
        found = calibrate(field, x, {level: noises[level] for level in self.levels}).value
        says_something = spread(x) > COLLAPSED and float((x - z).square().mean().sqrt()) > _UNMOVED
        return found if says_something else None


def spread(x: Tensor) -> float:
    """Deviation of samples (N, *D) around their mean."""
    return float((x - x.mean(0)).square().mean().sqrt())


@torch.no_grad()
def propose(teacher: ConvertibleTeacher, given: float, fine: Probe, coarse: Probe) -> list[Proposal]:
    """Conventions that fit where the given one does not, the best first, those alike with fewest changes first.

    Every candidate is integrated coarsely and the best ones as carefully as the given one.

    Args:
        given: miscalibration of the teacher as it is read.
        fine, coarse: many samples, and few.
    """
    remaining = list(candidates(teacher.convention))
    rounds = ((replace(coarse, num_steps=4, levels=(0.3, 0.7)), 24), (replace(coarse, num_steps=8), 8), (fine, 8))
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
