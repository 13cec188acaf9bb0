"""A teacher's field at given conditions, with the noise that everything is measured on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from freeflow_core.interfaces import Teacher
from freeflow_core.math.calibration import integrate, miscalibration
from freeflow_core.math.flow import linear_interpolate, linear_velocity
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.types import Condition, index_condition

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Times at which calibration is measured."""

ENOUGH_NUMBERS = 2048
"""Samples times dimensions from which on chance alone stays well below the limits of calibration."""


@final
class Probe:
    """Noise and conditions for ``num`` samples, the same for every reading of a network.

    Args:
        device, dtype: of the states.
    """

    def __init__(self, teacher: Teacher, num: int, seed: int, device: torch.device, dtype: torch.dtype) -> None:
        self.num = num
        index = torch.arange(num)
        draws = PhiloxDraws(seed, index, device=device, dtype=dtype)
        self.shape = tuple(teacher.sample_shape)
        self.condition: Condition = teacher.balanced_condition(index)
        self.z = draws.noise("teacher-check/prior", self.shape)
        self.noises = {level: draws.noise(f"teacher-check/{level}", self.shape) for level in LEVELS}

    @classmethod
    def default_num(cls, teacher: Teacher) -> int:
        """16 samples at least, and more of small states."""
        return max(16, math.ceil(ENOUGH_NUMBERS / math.prod(teacher.sample_shape)))

    def field(self, teacher: Teacher, x_t: Tensor, t: Tensor) -> Tensor:
        """The unguided velocity of the first len(x_t) samples' conditions."""
        rows = torch.arange(len(x_t))
        condition = self.condition if len(x_t) == self.num else index_condition(self.condition, rows)
        return teacher.velocity(x_t, t, condition)


@dataclass(frozen=True)
class Reading:
    """What one way of reading a network gives.

    Args:
        miscalibration: see :func:`freeflow_core.math.calibration.miscalibration`; the worst of several times.
        spread: deviation of the samples around their mean.
        moved: root mean square distance of the samples from their noise.
    """

    miscalibration: float
    spread: float
    moved: float

    @property
    def says_something(self) -> bool:
        """False where all samples are one, or the samples are the noise: such fields are calibrated, and empty."""
        return self.spread > 0.05 and self.moved > 0.2


@torch.no_grad()
def read(
    teacher: Teacher,
    probe: Probe,
    num_steps: int,
    levels: tuple[float, ...] = LEVELS,
    states: list[Tensor] | None = None,
) -> Reading:
    """Integrate, or take ``states`` of an integration, and measure against the samples at ``levels``."""
    states = integrate(lambda x, t: probe.field(teacher, x, t), probe.z, num_steps) if states is None else states
    x = states[-1]
    if not bool(torch.isfinite(x).all()) or float(x.square().mean()) > 1e6:
        return Reading(math.inf, math.inf, math.inf)
    return Reading(
        max(_at_level(teacher, probe, x, noise, t) for t, noise in probe.noises.items() if t in levels),
        float((x - x.mean(0)).square().mean().sqrt()),
        float((x - probe.z).square().mean().sqrt()),
    )


def _at_level(teacher: Teacher, probe: Probe, x: Tensor, noise: Tensor, level: float) -> float:
    t = torch.full((len(x),), level, dtype=torch.float64)
    x_t = linear_interpolate(x, noise, t)
    return miscalibration(probe.field(teacher, x_t, t), x_t, linear_velocity(x, noise))
