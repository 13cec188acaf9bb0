"""How many samples show the class they were asked to be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, final

import torch

from freeflow_core.config import ComponentConfig
from freeflow_core.interfaces import BuildContext, EvaluationBatch, EvaluationContext, Evaluator
from freeflow_metrics.config import ClassAccuracyConfig
from freeflow_metrics.feature_choice import build_classifier
from freeflow_metrics.features import FeatureNetwork, batch_features
from freeflow_metrics.rows import class_labels


@final
class ClassAccuracyEvaluator(Evaluator):
    """``accuracy`` in [0, 1] of the feature network's classifier against the samples' labels.

    No measure of quality by itself: blurred class means score 1. Samples without a label the classifier knows
    (unconditional ones, the null class) are not counted; the score is left out when none is left.

    Args:
        network: what turns images into features and features into logits.
    """

    def __init__(self, network: FeatureNetwork) -> None:
        self._network = network
        self._num_right = 0
        self._num_seen = 0

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        assert isinstance(config, ClassAccuracyConfig)
        return cls(build_classifier(config))

    def prepare(self, context: EvaluationContext) -> None:
        self._network.to(context.device)

    def reset(self, subject: str) -> None:
        self._num_right = self._num_seen = 0

    @torch.no_grad()
    def update(self, batch: EvaluationBatch) -> None:
        labels = class_labels(batch.condition)
        if labels is None or self._network.num_classes is None:
            return
        logits = self._network.logits(batch_features(self._network, batch))
        if logits is None:
            return
        known = (labels >= 0) & (labels < self._network.num_classes)
        right = logits.argmax(1).cpu() == labels
        self._num_right += int((right & known).sum())
        self._num_seen += int(known.sum())

    def compute(self) -> Mapping[str, float]:
        return {"accuracy": self._num_right / self._num_seen} if self._num_seen else {}
