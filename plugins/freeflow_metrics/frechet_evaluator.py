"""Fréchet distances of streamed samples."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Self, final

from torch import Tensor

from freeflow_core.config import ComponentConfig
from freeflow_core.interfaces import BuildContext, EvaluationBatch, EvaluationContext, Evaluator
from freeflow_metrics.config import FrechetConfig
from freeflow_metrics.feature_choice import build_features, distance_prefix
from freeflow_metrics.features import FeatureNetwork, batch_features, image_features
from freeflow_metrics.frechet import frechet_distance
from freeflow_metrics.reference_statistics import ReferenceStatistics, reference_statistics
from freeflow_metrics.rows import REFERENCE_SUBJECT
from freeflow_metrics.statistics import RunningMoments


@final
class FrechetEvaluator(Evaluator):
    """``fd_data``, ``fd_teacher`` and, against stored statistics, ``fd``; with Inception ``fid_data`` and so on.

    The distance is in squared feature units and biased upwards by few samples: compare rows of equal size only.
    On the row ``data`` (training images), ``fd_data`` is the floor that real images themselves reach.

    Args:
        network: what turns images into features.
        prefix: of the scores' names.
        stored: statistics beside the held-out data, or None.
    """

    def __init__(self, network: FeatureNetwork, prefix: str = "fd", stored: ReferenceStatistics | None = None) -> None:
        self._network = network
        self._prefix = prefix
        self._stored = stored
        self._data = self._empty()
        self._teacher = self._empty()
        self._row = self._empty()
        self._subject = ""

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        """Raises ``ConfigError`` when Inception or the stored statistics cannot be had."""
        assert isinstance(config, FrechetConfig)
        network = build_features(config)
        stored = reference_statistics(config, network.dim)
        return cls(network, distance_prefix(config, "fd", "fid"), stored)

    def prepare(self, context: EvaluationContext) -> None:
        self._network.to(context.device)
        self._data, self._teacher = self._empty(), self._empty()
        held_out = context.reference.held_out() if context.reference is not None else None
        if held_out is not None:
            for features in image_features(self._network, held_out[0]):
                self._data.update(features)

    def observe_reference(self, batch: EvaluationBatch) -> None:
        self._teacher.update(batch_features(self._network, batch))

    def reset(self, subject: str) -> None:
        self._subject = subject
        self._row = self._empty()

    def update(self, batch: EvaluationBatch) -> None:
        self._row.update(batch_features(self._network, batch))

    def compute(self) -> Mapping[str, float]:
        """Warns when a covariance has fewer samples than dimensions; a side with fewer than two is left out."""
        if self._row.count < 2:
            return {}
        scores = {}
        if self._stored is not None:
            scores[self._prefix] = self._distance(self._stored.mean, self._stored.covariance)
        if self._data.count >= 2:
            self._check_count(self._data, "held-out images")
            scores[f"{self._prefix}_data"] = self._distance(self._data.mean, self._data.covariance)
        if self._teacher.count >= 2 and self._subject != REFERENCE_SUBJECT:
            self._check_count(self._teacher, "samples of the teacher")
            scores[f"{self._prefix}_teacher"] = self._distance(self._teacher.mean, self._teacher.covariance)
        if scores:
            self._check_count(self._row, f"samples in the row {self._subject!r}")
        return scores

    def _distance(self, mean: Tensor, covariance: Tensor) -> float:
        return frechet_distance(mean, covariance, self._row.mean, self._row.covariance)

    def _empty(self) -> RunningMoments:
        return RunningMoments(self._network.dim)

    def _check_count(self, moments: RunningMoments, what: str) -> None:
        if moments.count < self._network.dim:
            warnings.warn(
                f"The Fréchet distance is unreliable: {moments.count} {what} for {self._network.dim} feature "
                "dimensions leave the covariance singular. Take more samples, or the kernel distance.",
                stacklevel=3,
            )
