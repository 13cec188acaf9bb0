"""Options of the objectives."""

from __future__ import annotations

from enum import Enum

from pydantic import Field, PositiveFloat

from freeflow_core.config import ComponentConfig


class TimeDistribution(str, Enum):
    """How training times are drawn on (0, 1); t = 0 is data, t = 1 noise."""

    UNIFORM = "uniform"
    LOGIT_NORMAL = "logit-normal"


class FlowMatchingConfig(ComponentConfig):
    """Options of flow matching."""

    time_distribution: TimeDistribution = Field(
        TimeDistribution.UNIFORM, description="Distribution of t: uniform (SiT) or logit-normal (Stable Diffusion 3)."
    )
    time_location: float = Field(
        0.0, ge=-10, le=10, description="logit-normal: mean of logit(t); above 0 favours noise, below 0 data."
    )
    time_scale: PositiveFloat = Field(1.0, le=10, description="logit-normal: standard deviation of logit(t).")
    label_dropout: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share of labels replaced by the null class, which classifier-free guidance needs; 0: none.",
    )
