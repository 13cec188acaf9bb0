"""Energy distances of streamed samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, final

import torch
from torch import Tensor

from freeflow_core.config import ComponentConfig
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import BuildContext, EvaluationBatch, EvaluationContext, Evaluator
from freeflow_metrics.config import EnergyDistanceConfig
from freeflow_metrics.energy import energy_distance
from freeflow_metrics.kernel import FeatureBuffer
from freeflow_metrics.rows import REFERENCE_SUBJECT


@final
class EnergyDistanceEvaluator(Evaluator):
    """``energy_data`` and ``energy_teacher``: distances to held-out data and to the many-step teacher's samples.

    No network: points are the states themselves, or images scaled to [-1, 1], so it fits vectors and small images.
    Unbiased, about 0 between equal distributions.

    Args:
        max_samples, max_dimension: see :class:`freeflow_metrics.config.EnergyDistanceConfig`.
    """

    def __init__(self, max_samples: int = 4096, max_dimension: int = 4096) -> None:
        self._max_samples = max_samples
        self._max_dimension = max_dimension
        self._data = self._empty()
        self._teacher = self._empty()
        self._row = self._empty()
        self._subject = ""

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        assert isinstance(config, EnergyDistanceConfig)
        return cls(config.max_samples, config.max_dimension)

    def prepare(self, context: EvaluationContext) -> None:
        """Raises ``ConfigError`` for held-out images that are too large."""
        self._data, self._teacher = self._empty(), self._empty()
        held_out = context.reference.held_out() if context.reference is not None else None
        if held_out is not None:
            self._data.update(self._points(held_out[0][: self._max_samples]))

    def observe_reference(self, batch: EvaluationBatch) -> None:
        self._teacher.update(self._points(batch.images))

    def reset(self, subject: str) -> None:
        self._subject = subject
        self._row = self._empty()

    def update(self, batch: EvaluationBatch) -> None:
        self._row.update(self._points(batch.images))

    def compute(self) -> Mapping[str, float]:
        """A side with fewer than two samples is left out."""
        if self._row.count < 2:
            return {}
        row = self._row.features()
        scores = {}
        if self._data.count >= 2:
            scores["energy_data"] = self._distance(row, self._data.features(), "held-out data")
        if self._teacher.count >= 2 and self._subject != REFERENCE_SUBJECT:
            scores["energy_teacher"] = self._distance(row, self._teacher.features(), "teacher's samples")
        return scores

    def _points(self, values: Tensor) -> Tensor:
        """(N, dim) float64 on the host: states as they are, uint8 images scaled to [-1, 1]."""
        dimension = values[0].numel() if len(values) else 0
        if dimension > self._max_dimension:
            raise ConfigError(
                f"The energy-distance evaluator compares raw states, and these have {dimension:,} entries each, more "
                f"than max_dimension={self._max_dimension:,}; distances between raw large images say little. Use the "
                "frechet or kernel evaluator, or raise max_dimension."
            )
        points = values.detach().cpu().double().flatten(1)
        return points if values.dtype != torch.uint8 else points / 127.5 - 1

    @staticmethod
    def _distance(row: Tensor, reference: Tensor, what: str) -> float:
        if row.shape[1] != reference.shape[1]:
            raise ConfigError(
                f"The energy-distance evaluator cannot compare samples of {row.shape[1]} entries with the {what} of "
                f"{reference.shape[1]}. Choose a reference of the samples' own shape."
            )
        return energy_distance(row, reference)

    def _empty(self) -> FeatureBuffer:
        return FeatureBuffer(self._max_samples)
