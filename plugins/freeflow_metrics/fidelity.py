"""Faithfulness to the teacher, sample by sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, final

import torch
from torch import Tensor

from freeflow_core.config import ComponentConfig
from freeflow_core.interfaces import (
    AverageVelocityStudent,
    BuildContext,
    EvaluationBatch,
    EvaluationContext,
    Evaluator,
    Teacher,
)
from freeflow_core.math.derivative import DerivativeMethod
from freeflow_core.math.flow import mean_square
from freeflow_core.types import Condition, index_condition
from freeflow_metrics.config import FidelityConfig
from freeflow_metrics.derivative_residual import derivative_residual
from freeflow_metrics.rows import REFERENCE_SUBJECT, STUDENT_SUBJECT


@final
class FidelityEvaluator(Evaluator):
    """``fidelity_mse`` and, for the one-step student, ``derivative_residual``.

    ``fidelity_mse`` is the mean squared error of a sample's state to the many-step teacher's from the same noise and
    condition, per dimension. ``derivative_residual`` is || u + d du/dd - v(f(z, d), 1 - d) ||^2 per dimension, averaged
    over durations and samples; it needs an average-velocity student and the teacher.

    Args:
        options: see :class:`FidelityConfig`.
    """

    paired = True

    def __init__(self, options: FidelityConfig) -> None:
        self._options = options
        self._student: AverageVelocityStudent | None = None
        self._teacher: Teacher | None = None
        self._device = torch.device("cpu")
        self._subject = ""
        self._errors = _Mean()
        self._residuals = _Mean()

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        assert isinstance(config, FidelityConfig)
        return cls(config)

    def prepare(self, context: EvaluationContext) -> None:
        self._device = context.device
        self._teacher = context.teacher
        self._student = context.student if isinstance(context.student, AverageVelocityStudent) else None

    def reset(self, subject: str) -> None:
        self._subject = subject
        self._errors, self._residuals = _Mean(), _Mean()

    def update(self, batch: EvaluationBatch) -> None:
        if batch.x is not None and batch.reference_x is not None and self._subject != REFERENCE_SUBJECT:
            self._errors.update(mean_square(batch.x.detach().cpu().double() - batch.reference_x.cpu().double()))
        wanted = self._options.derivative_samples - self._residuals.count // len(self._options.durations)
        if self._subject == STUDENT_SUBJECT and batch.z is not None and wanted > 0:
            self._update_residuals(batch, batch.z[:wanted])

    def _update_residuals(self, batch: EvaluationBatch, z: Tensor) -> None:
        if self._student is None or self._teacher is None:
            return
        rows = torch.arange(len(z))
        for duration in self._options.durations:
            residual = derivative_residual(
                self._student,
                self._teacher,
                z.to(self._device),
                _moved(index_condition(batch.condition, rows), self._device),
                None if batch.guidance is None else batch.guidance.rows(rows),
                duration,
                method=DerivativeMethod(self._options.derivative),
                step=self._options.derivative_step,
            )
            self._residuals.update(residual.cpu().double())

    def compute(self) -> Mapping[str, float]:
        scores = {"fidelity_mse": self._errors.value, "derivative_residual": self._residuals.value}
        return {name: value for name, value in scores.items() if value is not None}


def _moved(condition: Condition, device: torch.device) -> Condition:
    if isinstance(condition, dict):
        return {key: value.to(device) for key, value in condition.items()}
    return None if condition is None else condition.to(device)


@final
class _Mean:
    """A running mean of (N,) values."""

    def __init__(self) -> None:
        self.count = 0
        self._total = 0.0

    def update(self, values: Tensor) -> None:
        self.count += len(values)
        self._total += float(values.sum())

    @property
    def value(self) -> float | None:
        return self._total / self.count if self.count else None
