"""Kernel distances of streamed samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, final

from freeflow_core.config import ComponentConfig
from freeflow_core.interfaces import BuildContext, EvaluationBatch, EvaluationContext, Evaluator
from freeflow_metrics.config import KernelConfig
from freeflow_metrics.feature_choice import build_features, distance_prefix
from freeflow_metrics.features import FeatureNetwork, batch_features, image_features
from freeflow_metrics.kernel import FeatureBuffer, kernel_distance
from freeflow_metrics.rows import REFERENCE_SUBJECT


@final
class KernelEvaluator(Evaluator):
    """``kd_data`` and ``kd_teacher``; with Inception features ``kid_data`` and ``kid_teacher``.

    Unbiased, so usable where samples are too few for the Fréchet distance; about 0 between equal distributions.

    Args:
        network: what turns images into features.
        prefix: of the scores' names.
        options: subsets, and how many features are kept.
    """

    def __init__(self, network: FeatureNetwork, prefix: str, options: KernelConfig) -> None:
        self._network = network
        self._prefix = prefix
        self._options = options
        self._data = self._empty()
        self._teacher = self._empty()
        self._row = self._empty()
        self._subject = ""

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        """Raises ``ConfigError`` when Inception cannot be had."""
        assert isinstance(config, KernelConfig)
        return cls(build_features(config), distance_prefix(config, "kd", "kid"), config)

    def prepare(self, context: EvaluationContext) -> None:
        self._network.to(context.device)
        self._data, self._teacher = self._empty(), self._empty()
        held_out = context.reference.held_out() if context.reference is not None else None
        if held_out is not None:
            for features in image_features(self._network, held_out[0][: self._options.max_samples]):
                self._data.update(features)

    def observe_reference(self, batch: EvaluationBatch) -> None:
        self._teacher.update(batch_features(self._network, batch))

    def reset(self, subject: str) -> None:
        self._subject = subject
        self._row = self._empty()

    def update(self, batch: EvaluationBatch) -> None:
        self._row.update(batch_features(self._network, batch))

    def compute(self) -> Mapping[str, float]:
        """A side with fewer than two samples is left out."""
        if self._row.count < 2:
            return {}
        scores = {}
        if self._data.count >= 2:
            scores[f"{self._prefix}_data"] = self._distance(self._data)
        if self._teacher.count >= 2 and self._subject != REFERENCE_SUBJECT:
            scores[f"{self._prefix}_teacher"] = self._distance(self._teacher)
        return scores

    def _distance(self, reference: FeatureBuffer) -> float:
        return kernel_distance(
            reference.features(),
            self._row.features(),
            num_subsets=self._options.num_subsets,
            subset_size=self._options.subset_size,
            seed=self._options.seed,
        )

    def _empty(self) -> FeatureBuffer:
        return FeatureBuffer(self._options.max_samples)
