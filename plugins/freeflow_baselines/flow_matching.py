"""Flow matching: the instantaneous velocity, learnt from data."""

from typing import final

import torch

from freeflow_baselines.config import FlowMatchingConfig
from freeflow_core.interfaces import AverageVelocityStudent, Context, Models, Objective
from freeflow_core.math.flow import logit_normal, mean_square
from freeflow_core.objective_kit.rows import drop_labels, noisy_rows
from freeflow_core.types import Batch, Draws, Loss, Losses, Progress


@final
class FlowMatching(Objective):
    """min E || u(x_t, t, t) - (n - x) ||^2 with x_t = (1 - t) x + t n, the mean over dimensions.

    Conditional flow matching (Lipman et al. 2022, eq. 9) along the linear path, with the labels
    and times of SiT (Ma et al. 2024). Its minimiser is the velocity v(x_t, t) = E[n - x | x_t] of
    a teacher. Only s = t is trained, so the result is a velocity field and not yet a flow map.

    ``config``: distribution of t, and the share of labels dropped. A dropped label becomes the null class, whose index
    is ``student.num_classes``: the row after the last class.
    """

    needs_data = True
    needs_teacher = False
    requires = AverageVelocityStudent

    def __init__(self, config: FlowMatchingConfig) -> None:
        self._config = config

    def losses(self, models: Models, batch: Batch, draws: Draws, progress: Progress, context: Context) -> Losses:
        config, student = self._config, models["student"]
        t = draws.uniform("time")
        if config.time_distribution == "logit-normal":
            t = logit_normal(t, config.time_location, config.time_scale)
        rows = noisy_rows(batch, draws, t, torch.ones_like(t))
        condition, _ = drop_labels(rows.condition, student.bare.num_classes, config.label_dropout, draws)
        output = student.wrapped(rows.x_t, t, t, condition, None)  # a teacher knows no guidance weight
        u = student.bare.average_velocity(output, rows.x_t, t, t).to(rows.x_t.dtype)
        per_sample = mean_square(u - rows.velocity)
        terms = {"loss": per_sample.detach().mean(), "velocity_mean_square": mean_square(u.detach()).mean()}
        return {"student": Loss(per_sample, terms)}
