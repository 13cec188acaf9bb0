"""MeanFlow, from a teacher's velocity or from data."""

from typing import final

import torch
from torch import Tensor

from freeflow_core.interfaces import Models
from freeflow_core.math.flow import uniform_between
from freeflow_core.objective_kit.passes import take, teacher_velocity
from freeflow_core.objective_kit.rows import NoisyRows
from freeflow_core.types import Draws, Progress
from freeflow_meanflow.config import MeanFlowConfig
from freeflow_meanflow.step import Field, MeanFlowStep, mix_guided, velocities_now


@final
class MeanFlow(MeanFlowStep):
    """u(x_t, t, s) regresses on v - (t - s) (v . grad_x u + du/dt) (Geng et al. 2025, eq. 10).

    velocity: teacher puts the guided teacher in place of v, both in the target and in the tangent; the student takes
    g as an input. velocity: data takes n - x in both, or with guidance the network's own mixture
    (:func:`freeflow_meanflow.step.mix_guided`); rows whose label was dropped stay unguided.

    Fixed point: the exact average velocity, with a teacher in every row, from data in the mean over paths through
    x_t; the power p > 0 then shifts it, least in high dimension. Cost with the share m = 1 - ``instant_share``:
    F + B + mJ (J = 2F) plus T, or from data with guidance F (2F with guidance_mixing). Known failures: u fails where v
    is not yet good; guided training from data is unstable from a random start.
    """

    def __init__(self, config: MeanFlowConfig) -> None:
        super().__init__(config)
        self._config = config
        self.needs_teacher = config.velocity == "teacher"

    def draw_guidance(self, draws: Draws) -> Tensor:
        return uniform_between(draws.uniform("guidance"), self._config.guidance_min, self._config.guidance_max)

    def dropout(self) -> float:
        return self._config.label_dropout if self._config.velocity == "data" else 0.0

    def warmup(self, progress: Progress) -> float:
        share = self._config.derivative_warmup_fraction
        return min(1.0, progress.fraction / share) if share else 1.0

    def field(self, models: Models, rows: NoisyRows, weight: Tensor, moving: Tensor) -> Field:
        if self._config.velocity == "teacher":
            v = teacher_velocity(models.teacher, rows.x_t, rows.t, rows.condition, weight)
        else:
            v = self._from_data(models, rows, weight)
        return Field(v, take(v, moving))

    def _from_data(self, models: Models, rows: NoisyRows, weight: Tensor) -> Tensor:
        if self._config.guidance_min == self._config.guidance_max == 1:
            return rows.velocity
        guided = (weight != 1).nonzero().flatten()
        kappa = self._config.guidance_mixing
        u_c, u_null = velocities_now(models["student"], rows, guided if kappa else guided[:0], guided)
        if not len(guided):
            return rows.velocity
        mixing = torch.full((len(guided),), kappa, dtype=torch.float64)
        return mix_guided(rows, guided, weight[guided], mixing, u_c if kappa else u_null, u_null)
