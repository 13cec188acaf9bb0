"""What samples show of the classes they were asked to be: whether they are right, and whether they still differ."""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor
from torch.nn import functional

from freeflow_core.interfaces import EvaluationBatch, EvaluationContext, Evaluator
from freeflow_core.types import Condition
from freeflow_metrics.config import ClassAccuracyConfig, SpreadConfig
from freeflow_metrics.distance import REFERENCE_SUBJECT
from freeflow_metrics.features import SmallFeatures, batch_features

_HALF_RANGE = 127.5  # pixel values per unit of the range [-1, 1]


def class_labels(condition: Condition) -> Tensor | None:
    """(N,) int64 labels on the host when the condition is one label per sample; None otherwise."""
    if not isinstance(condition, Tensor) or condition.ndim != 1 or condition.is_floating_point():
        return None
    return condition.detach().cpu().to(torch.int64)


@final
class ClassAccuracyEvaluator(Evaluator):
    """``accuracy`` in [0, 1] of the feature network's classifier against the samples' labels.

    No measure of quality by itself: blurred class means score 1. Samples without a label the classifier knows
    (unconditional ones, the null class) are not counted; the score is left out when none is left.
    """

    def __init__(self, config: ClassAccuracyConfig) -> None:
        self._network = SmallFeatures.chosen(config)
        self._num_right = 0
        self._num_seen = 0

    def prepare(self, context: EvaluationContext) -> None:
        self._network.to(context.device)

    def reset(self, subject: str) -> None:
        self._num_right = self._num_seen = 0

    def extract(self, batch: EvaluationBatch) -> None:
        if class_labels(batch.condition) is not None:
            batch_features(self._network, batch)

    def update(self, batch: EvaluationBatch) -> None:
        labels = class_labels(batch.condition)
        if labels is not None:
            right = self._network.logits(batch_features(self._network, batch)).argmax(1) == labels
            known = (labels >= 0) & (labels < self._network.num_classes)
            self._num_right += int((right & known).sum())
            self._num_seen += int(known.sum())

    def compute(self) -> Mapping[str, float]:
        return {"accuracy": self._num_right / self._num_seen} if self._num_seen else {}


@final
class ClassSpread:
    """Standard deviation over the samples of a class, pixel by pixel, then averaged over pixels.

    Sums run in float64 over whole and half numbers, so for images that are not reduced they are exact whatever the
    batches, and no digits cancel.

    ``max_side``: images larger than this are area-averaged to it first.
    """

    def __init__(self, max_side: int) -> None:
        self._max_side = max_side
        self._sums: dict[int, Tensor] = {}  # (3, pixels): how many, their sum, their squares' sum

    def update(self, images: Tensor, labels: Tensor | None) -> None:
        pixels = images.detach().cpu().double()
        height, width = (min(side, self._max_side) for side in pixels.shape[-2:])
        if (height, width) != pixels.shape[-2:]:
            pixels = functional.adaptive_avg_pool2d(pixels, (height, width))
        pixels = pixels.flatten(1) - _HALF_RANGE
        rows = torch.zeros(len(pixels), dtype=torch.int64) if labels is None else labels
        classes, place = torch.unique(rows, return_inverse=True)
        terms = torch.stack([torch.ones_like(pixels), pixels, pixels.square()], 1)
        sums = torch.zeros(len(classes), *terms.shape[1:], dtype=torch.float64).index_add(0, place, terms)
        for label, new in zip(classes.tolist(), sums, strict=True):
            self._sums[label] = self._sums[label] + new if label in self._sums else new

    def per_class(self) -> dict[int, float]:
        """By label, in pixel units of the range [-1, 1]; classes with fewer than two samples are left out."""
        spread = {}
        for label, (count, first, second) in sorted(self._sums.items()):
            if count[0] > 1:
                variance = (second - first.square() / count) / (count - 1)
                spread[label] = float(variance.clamp_min(0).sqrt().mean()) / _HALF_RANGE
        return spread


@final
class SpreadEvaluator(Evaluator):
    """``spread``, ``spread_ratio`` and ``spread_ratio_min``: a student that collapses loses spread before accuracy.

    ``spread`` is the per-pixel standard deviation within a class, averaged over pixels and then over classes, in
    pixel units of the range [-1, 1]. ``spread_ratio`` is its ratio to the many-step teacher's over the classes both
    have, 1 at best; ``spread_ratio_min`` the smallest ratio of any class, so that one collapsed class shows.
    Unconditional samples are one class.
    """

    def __init__(self, config: SpreadConfig) -> None:
        self._max_side = config.max_side
        self._teacher = self._row = ClassSpread(self._max_side)
        self._subject = ""

    def prepare(self, context: EvaluationContext) -> None:
        self._teacher = ClassSpread(self._max_side)

    def observe_reference(self, batch: EvaluationBatch) -> None:
        self._teacher.update(batch.images, class_labels(batch.condition))

    def reset(self, subject: str) -> None:
        self._subject = subject
        self._row = ClassSpread(self._max_side)

    def update(self, batch: EvaluationBatch) -> None:
        self._row.update(batch.images, class_labels(batch.condition))

    def compute(self) -> Mapping[str, float]:
        row = self._row.per_class()
        if not row:
            return {}
        scores = {"spread": sum(row.values()) / len(row)}
        teacher = {label: value for label, value in self._teacher.per_class().items() if label in row and value > 0}
        if teacher and self._subject != REFERENCE_SUBJECT:
            scores["spread_ratio"] = sum(row[label] for label in teacher) / sum(teacher.values())
            scores["spread_ratio_min"] = min(row[label] / value for label, value in teacher.items())
        return scores
