"""Whether samples of a class still differ from each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, final

from freeflow_core.config import ComponentConfig
from freeflow_core.interfaces import BuildContext, EvaluationBatch, EvaluationContext, Evaluator
from freeflow_metrics.class_spread import ClassSpread
from freeflow_metrics.config import SpreadConfig
from freeflow_metrics.rows import REFERENCE_SUBJECT, class_labels


@final
class SpreadEvaluator(Evaluator):
    """``spread``, ``spread_ratio`` and ``spread_ratio_min``: a student that collapses loses spread before accuracy.

    ``spread`` is the per-pixel standard deviation within a class, averaged over pixels and then over classes, in
    pixel units of the range [-1, 1]. ``spread_ratio`` is its ratio to the many-step teacher's over the classes both
    have, 1 at best; ``spread_ratio_min`` the smallest ratio of any class, so that one collapsed class shows.
    Unconditional samples are one class.

    Args:
        max_side: see :class:`SpreadConfig`.
    """

    def __init__(self, max_side: int = 64) -> None:
        self._max_side = max_side
        self._teacher = ClassSpread(max_side)
        self._row = ClassSpread(max_side)
        self._subject = ""

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        assert isinstance(config, SpreadConfig)
        return cls(config.max_side)

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
