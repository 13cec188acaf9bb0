"""Other ways to read a network, and which of them fits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from freeflow_core.interfaces import ConvertibleTeacher
from freeflow_core.math.conversions import SIGNED, Convention, Prediction, Sign, TimeDirection
from freeflow_core.math.schedules import SCHEDULES, named_schedule
from freeflow_core.teacher_check.probe import LEVELS, Probe, Reading, read

GOOD = 0.03
"""A reading is calibrated up to here; the exact ones measured 0.003, trained networks 0.01, wrong ones from 0.06 on."""

_ALIKE = 0.003


@dataclass(frozen=True)
class _Round:
    """One round of the search: the ``keep`` best of a measurement in ``num_steps`` steps at ``levels`` go on."""

    num_steps: int
    levels: tuple[float, ...]
    keep: int


_ROUNDS = (_Round(4, (0.3, 0.7), 24), _Round(8, LEVELS, 8))


@dataclass(frozen=True)
class Proposal:
    """A convention that fits: the options to change, and how well it does."""

    settings: dict[str, Any]
    miscalibration: float


@torch.no_grad()
def propose(teacher: ConvertibleTeacher, given: Reading, probe: Probe, coarse: Probe, num_steps: int) -> list[Proposal]:
    """Conventions that fit where the given one does not, the best first, those alike with fewest changes first.

    Every candidate is integrated coarsely, the best ones as carefully as the given one.

    Args:
        probe, coarse: many and few samples.
    """
    remaining = list(candidates(teacher.convention))
    for stage in _ROUNDS:
        scored: list[tuple[float, int]] = []
        for number, convention in enumerate(remaining):
            reading = read(teacher.with_convention(convention), coarse, stage.num_steps, stage.levels)
            if reading.says_something and math.isfinite(reading.miscalibration):
                scored.append((reading.miscalibration, number))
        remaining = [remaining[number] for _, number in sorted(scored)[: stage.keep]]
    found: list[tuple[float, Convention]] = []
    for convention in remaining:
        reading = read(teacher.with_convention(convention), probe, num_steps)
        # A convention that fits by a hair where the given one misses by a hair would be no finding.
        if reading.says_something and reading.miscalibration < min(GOOD, given.miscalibration / 3):
            found.append((reading.miscalibration, convention))
    best = min((score for score, _ in found), default=0.0)
    found.sort(key=lambda pair: (pair[0] > best + _ALIKE, len(teacher.convention.differences(pair[1])), pair[0]))
    return [Proposal(teacher.convention.differences(convention), score) for score, convention in found]


def candidates(given: Convention) -> Iterator[Convention]:
    """Every prediction, schedule, direction, sign and usual scale but the given ones; everything else as given."""
    for name, prediction, direction, sign in itertools.product(SCHEDULES, Prediction, TimeDirection, Sign):
        schedule = given.schedule if name == given.schedule_name else named_schedule(name)
        discrete = name.startswith("ddpm")
        if (prediction not in SIGNED and sign is not Sign.TO_NOISE) or (
            (discrete and prediction is Prediction.VELOCITY)
            or (not schedule.reversible and direction is TimeDirection.DATA_AT_1)
        ):
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
