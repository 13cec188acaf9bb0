"""From what a network predicts, in its own time and scale, to the velocity of the linear path.

Here t = 0 is data and t = 1 noise, x_t = (1 - t) x + t n, v = n - x. A foreign network
sees x_own = alpha x + sigma n of its :class:`~freeflow_core.math.schedules.Schedule` and answers with an estimate of
one linear combination of x and n; with x_own that fixes both, hence v.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from freeflow_core.math.flow import expand_times
from freeflow_core.math.schedules import LinearSchedule, Schedule


class Prediction(str, Enum):
    """What a network estimates."""

    DATA = "data"
    """x."""
    NOISE = "noise"
    """n (Ho et al. 2020)."""
    VELOCITY = "velocity"
    """d x_own / d tau = alpha' x + sigma' n."""
    ROTATION = "v-prediction"
    """alpha n - sigma x (Salimans & Ho 2022), which diffusers calls v-prediction."""
    SCORE = "score"
    """grad log p(x_own) = -n / sigma (Song et al. 2021)."""


class TimeDirection(str, Enum):
    """Which end of a network's own time is data."""

    DATA_AT_0 = "data-at-0"
    DATA_AT_1 = "data-at-1"


class Sign(str, Enum):
    """Where a predicted velocity points."""

    TO_NOISE = "noise-minus-data"
    TO_DATA = "data-minus-noise"


@dataclass(frozen=True)
class Convention:
    """How a network is to be asked, and what its answer means.

    Args:
        prediction: what it estimates.
        time_direction: of its own time.
        sign: of a velocity or v-prediction; None: as its own time runs.
        schedule: the path of its own states.
        schedule_name: as the option is written, for proposals.
        time_scale: the network is fed time_scale * time + time_offset; None: the schedule's own.
        time_offset: see there.
        output_scale: the answer is multiplied by it first.
        data_std: divide the states fed by sqrt(alpha^2 data_std^2 + sigma^2), so that they have unit variance (Karras
            et al. 2022, eq. 7, c_in); None: feed x_own as it is.
        low, high: linear times beyond which the field is continued constantly; None: as the schedule and the
            prediction need, see :meth:`time_range`.
    """

    prediction: Prediction = Prediction.VELOCITY
    time_direction: TimeDirection = TimeDirection.DATA_AT_0
    sign: Sign | None = None
    schedule: Schedule = field(default_factory=LinearSchedule, compare=False)
    schedule_name: str = "linear"
    time_scale: float | None = None
    time_offset: float = 0.0
    output_scale: float = 1.0
    data_std: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def own_sign(self) -> Sign:
        """``sign``, or the one that follows from the direction of time."""
        if self.sign is not None:
            return self.sign
        return Sign.TO_NOISE if self.time_direction is TimeDirection.DATA_AT_0 else Sign.TO_DATA

    @property
    def scale(self) -> float:
        return self.schedule.default_scale if self.time_scale is None else self.time_scale

    @property
    def amplifies(self) -> bool:
        """Whether v divides the answer's error by a small number at one end: worth full precision."""
        return self.prediction in (Prediction.DATA, Prediction.NOISE, Prediction.SCORE)

    @property
    def time_range(self) -> tuple[float, float]:
        """Linear times between which v follows from the answer.

        x alone says nothing of n at t = 0, and n or the score nothing of x at t = 1: such networks are asked 1e-3
        short of it.
        """
        low, high = self.schedule.time_range
        if self.prediction is Prediction.DATA:
            low = max(low, _MARGIN)
        if self.prediction in (Prediction.NOISE, Prediction.SCORE):
            high = min(high, 1 - _MARGIN)
        return (low if self.low is None else self.low, high if self.high is None else self.high)

    def options(self) -> dict[str, Any]:
        """The options that a proposal may change, as a configuration writes them; null where the default does."""
        signed = self.prediction in SIGNED and self.own_sign is not replace(self, sign=None).own_sign
        return {
            "prediction": self.prediction.value,
            "time_direction": self.time_direction.value,
            "sign": self.own_sign.value if signed else None,
            "schedule": self.schedule_name,
            "time_scale": None if self.scale == self.schedule.default_scale else self.scale,
            "time_offset": self.time_offset,
            "output_scale": self.output_scale,
        }

    def differences(self, other: Convention) -> dict[str, Any]:
        """The options of ``other`` that are not this one's; a value that was written out here is overwritten."""
        mine, theirs = self.options(), other.options()
        if self.sign is not None:
            mine["sign"] = self.sign.value
        if self.time_scale is not None:
            mine["time_scale"] = self.time_scale
        same = self.own_sign is other.own_sign or other.prediction not in SIGNED
        if same and self.prediction in SIGNED and other.prediction in SIGNED and self.sign is not None:
            theirs["sign"] = self.sign.value
        if self.scale == other.scale and self.time_scale is not None:
            theirs["time_scale"] = self.time_scale
        return {name: value for name, value in theirs.items() if value != mine[name]}


SIGNED = (Prediction.VELOCITY, Prediction.ROTATION)
"""Predictions that point somewhere."""

_MARGIN = 1e-3


@dataclass(frozen=True)
class Question:
    """What the network is asked: ``x`` (N, *D) states and ``time`` (N,), both its own. ``t`` (N,) is the linear time,
    held inside the range; all times are float64."""

    x: Tensor
    time: Tensor
    t: Tensor


def ask(convention: Convention, x_t: Tensor, t: Tensor) -> Question:
    """The network's own state and time for ``x_t`` (N, *D) of the linear path at ``t`` (N,)."""
    schedule = convention.schedule
    t = t.double().clamp(*convention.time_range)
    tau = schedule.own_time(t)
    alpha, sigma = schedule.alpha(tau), schedule.sigma(tau)
    factor = alpha + sigma
    if convention.data_std is not None:
        factor = factor / torch.sqrt((alpha * convention.data_std).square() + sigma.square())
    time = tau if convention.time_direction is TimeDirection.DATA_AT_0 else 1 - tau
    return Question(expand_times(factor, x_t) * x_t, convention.scale * time + convention.time_offset, t)


def velocity_of(convention: Convention, answer: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """v = n - x of the linear path (N, *D), of a network's ``answer`` (N, *D) about ``x_t`` (N, *D) at ``t`` (N,).

    With the estimate x of the data, v = (x_t - x) / t; with n of the noise, v = (n - x_t) / (1 - t). A velocity
    w = alpha' x + sigma' n gives v = ((alpha + sigma) w - (alpha' + sigma') x_own) / (alpha sigma' - sigma alpha').

    ``t``: as :func:`ask` returns it, inside the range.
    """
    answer = answer * convention.output_scale
    if convention.prediction in SIGNED and convention.own_sign is Sign.TO_DATA:
        answer = -answer
    schedule = convention.schedule
    if convention.prediction is Prediction.DATA:
        return (x_t - answer) / expand_times(t, x_t)
    tau = schedule.own_time(t)
    alpha, sigma = schedule.alpha(tau), schedule.sigma(tau)
    if convention.prediction in SIGNED:
        rotation = convention.prediction is Prediction.ROTATION
        alpha_rate, sigma_rate = (-sigma, alpha) if rotation else schedule.rates(tau)
        determinant = alpha * sigma_rate - sigma * alpha_rate
        of_answer = (alpha + sigma) / determinant
        of_state = (alpha_rate + sigma_rate) * (alpha + sigma) / determinant
        return expand_times(of_answer, x_t) * answer - expand_times(of_state, x_t) * x_t
    noise = -expand_times(sigma, x_t) * answer if convention.prediction is Prediction.SCORE else answer
    return (noise - x_t) / expand_times(1 - t, x_t)
