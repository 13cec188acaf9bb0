"""Flow matching: the instantaneous velocity, learnt from data."""

from __future__ import annotations

from typing import Self, final

import torch
from torch import Tensor

from freeflow_baselines.config import FlowMatchingConfig, TimeDistribution
from freeflow_core.config import ComponentConfig
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import (
    AverageVelocityStudent,
    BuildContext,
    Context,
    Models,
    Objective,
    Role,
    StartTimes,
    Student,
    Teacher,
)
from freeflow_core.math.flow import linear_interpolate, linear_velocity, logit_normal, mean_square
from freeflow_core.objective_kit.rows import drop_labels
from freeflow_core.types import Batch, Draws, Loss, Progress


@final
class FlowMatching(Objective):
    """min E || u(x_t, t, t) - (n - x) ||^2 with x_t = (1 - t) x + t n, the mean over dimensions.

    Conditional flow matching (Lipman et al. 2022, arXiv 2210.02747, eq. 9) along the linear path, with the labels
    and times of SiT (Ma et al. 2024, arXiv 2401.08740). Its minimiser is the velocity v(x_t, t) = E[n - x | x_t] of
    a teacher. Only s = t is trained, so the result is a velocity field and not yet a flow map.

    Args:
        config: distribution of t, and the share of labels dropped. A dropped label becomes the null class, whose
            index is ``student.num_classes``: the row after the last class.
    """

    needs_data = True
    needs_teacher = False
    requires = AverageVelocityStudent
    start_times = StartTimes.ANY

    def __init__(self, config: FlowMatchingConfig) -> None:
        self._config = config

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        assert isinstance(config, FlowMatchingConfig)
        return cls(config)

    def roles(self, student: Student, teacher: Teacher | None) -> dict[str, Role]:
        return {}

    def losses(
        self, models: Models, batch: Batch, draws: Draws, progress: Progress, context: Context
    ) -> dict[str, Loss]:
        if batch.x is None:
            raise ConfigError(
                "The flow-matching objective learns from data, but the source yields none. "
                "Choose a source with data, such as `--source digits`."
            )
        model = models["student"]
        noise = draws.noise("noise", tuple(batch.x.shape[1:]))
        x = batch.x.to(noise)
        t = self._times(draws)
        condition, _ = drop_labels(batch.condition, model.bare.num_classes, self._config.label_dropout, draws)
        x_t = linear_interpolate(x, noise, t)
        output = model.wrapped(x_t, t, t, condition, None)
        v = _full(model.bare.average_velocity(output, x_t, t, t))
        per_sample = mean_square(v - linear_velocity(x, noise))
        terms = {"loss": per_sample.detach().mean(), "velocity_mean_square": mean_square(v.detach()).mean()}
        return {"student": Loss(per_sample, terms)}

    def _times(self, draws: Draws) -> Tensor:
        """(N,) float64 on the host, in (0, 1)."""
        uniform = draws.uniform("time")
        if self._config.time_distribution is TimeDistribution.UNIFORM:
            return uniform
        return logit_normal(uniform, self._config.time_location, self._config.time_scale)


def _full(values: Tensor) -> Tensor:
    """At least float32: under autocast a network answers in bf16, too coarse to square and average."""
    return values if values.dtype is torch.float64 else values.float()
