"""One training step: one student pass, one derivative, one teacher call, one fake-velocity pass."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import final

import torch
from torch import Tensor

from freeflow_core.interfaces import (
    AverageVelocityStudent,
    Context,
    Models,
    Objective,
    Role,
    StartTimes,
    Student,
    Teacher,
)
from freeflow_core.types import Batch, Draws, Loss, Progress, index_condition
from freeflow_predictor_corrector.config import GuidanceConfig
from freeflow_predictor_corrector.correction import Correction, Corrector, Noised
from freeflow_predictor_corrector.guidance import draw_guidance
from freeflow_predictor_corrector.prediction import Prediction, Predictor
from freeflow_predictor_corrector.rows import PriorRows, Query, teacher_velocity, velocity_with_gradient
from freeflow_predictor_corrector.times import durations

FAKE_VELOCITY = "fake_velocity"


class PredictorCorrector(Objective):
    """Base of the three objectives: how rows are split and how the halves are balanced is theirs to say.

    Random streams: ``prior``, ``guidance``, ``duration``, ``noise-level``, ``correction-noise``, and the teacher's
    own for conditions. The student's ``per_sample`` (N,) holds prediction rows first, then correction rows; since
    its mean over all rows is minimised, each half counts by its share of the batch.

    Args:
        guidance: options that both halves share.
        predictor: None for correction alone.
        corrector: None for prediction alone; then there is no fake velocity either.
    """

    needs_data = False
    needs_teacher = True
    requires = AverageVelocityStudent
    start_times = StartTimes.PRIOR

    def __init__(self, guidance: GuidanceConfig, predictor: Predictor | None, corrector: Corrector | None) -> None:
        self._guidance = guidance
        self._predictor = predictor
        self._corrector = corrector

    @abstractmethod
    def split(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """Host indices of the prediction rows and of the correction rows."""

    def scale(self, strength: float, prediction: Prediction | None, correction: Correction, context: Context) -> Tensor:
        """lambda, 0-d: the factor of the correction's gradient; here alpha itself."""
        return correction.norm.new_full((), strength)

    @final
    def roles(self, student: Student, teacher: Teacher | None) -> dict[str, Role]:
        """The fake velocity: a copy of the student *with the teacher's weights*, so that at first v_N = v."""
        if self._corrector is None:
            return {}
        optimizer = self._corrector.config.fake_velocity_optimizer
        return {FAKE_VELOCITY: Role(copy.deepcopy(student), trainable=True, ema=False, optimizer=optimizer)}

    @final
    def losses(
        self, models: Models, batch: Batch, draws: Draws, progress: Progress, context: Context
    ) -> dict[str, Loss]:
        student, teacher = models["student"], models.teacher
        prediction_rows, correction_rows = self.split(draws)
        rows = self._draw(batch, draws, teacher, prediction_rows, correction_rows)
        first, last = len(prediction_rows), len(rows.d)
        predicted, corrected = rows.part(0, first), rows.part(first, last)
        u = velocity_with_gradient(student, rows.z, torch.ones_like(rows.s), rows.s, rows.condition, rows.guidance)

        # Every question to the teacher is known now: ask them all at once.
        queries: list[Query] = []
        noised: Noised | None = None
        if self._predictor is not None:
            queries.append(self._predictor.query(predicted, u[:first]))
        if self._corrector is not None:
            r_uniform = draws.uniform("noise-level")[correction_rows]
            noised = self._corrector.query(corrected, u[first:], draws.rows(correction_rows), r_uniform, teacher)
            queries.append(noised.query)
        v = teacher_velocity(teacher, queries, rows.condition)

        prediction: Prediction | None = None
        per_sample: list[Tensor] = []
        terms: dict[str, Tensor] = {}
        losses: dict[str, Loss] = {}
        if self._predictor is not None:
            prediction = self._predictor.loss(student, predicted, u[:first], v[:first], progress.step)
            per_sample.append(prediction.per_sample)
            terms |= {
                "prediction_loss": prediction.per_sample.detach().mean(),
                "prediction_residual": prediction.norm.mean(),
                "weight_mean": prediction.weight.mean(),
                **prediction.terms,
            }
        if self._corrector is not None and noised is not None:
            correction = self._corrector.correct(models[FAKE_VELOCITY], corrected, noised, v[first:])
            scale = self.scale(self._corrector.strength(progress), prediction, correction, context)
            per_sample.append(correction.per_sample(u[first:], scale))
            terms |= {"correction_residual": correction.norm.mean(), "balance": scale}
            losses[FAKE_VELOCITY] = Loss(correction.fake_per_sample)
        return {"student": Loss(torch.cat(per_sample), terms), **losses}

    def _draw(
        self, batch: Batch, draws: Draws, teacher: Teacher, prediction_rows: Tensor, correction_rows: Tensor
    ) -> PriorRows:
        """This step's rows, prediction first: one concatenated batch, so that both halves share every pass."""
        joined = torch.cat([prediction_rows, correction_rows])
        z = draws.noise("prior", teacher.sample_shape)
        condition = teacher.sample_condition(draws) if batch.condition is None else batch.condition
        d = torch.ones(len(joined), dtype=torch.float64)
        if self._predictor is not None:
            d[: len(prediction_rows)] = durations(draws.uniform("duration"), self._predictor.config)[prediction_rows]
        return PriorRows(
            z=z[joined.to(z.device, non_blocking=True)],
            d=d,
            condition=index_condition(condition, joined),
            guidance=draw_guidance(draws, self._guidance)[joined],
        )
