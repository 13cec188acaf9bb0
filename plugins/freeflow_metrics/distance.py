"""What evaluators that compare whole sets of samples have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Generic, Protocol, TypeVar, final

import torch
from torch import Tensor

from freeflow_core.interfaces import EvaluationBatch, EvaluationContext, Evaluator
from freeflow_metrics.features import FeatureNetwork, batch_features, image_features

REFERENCE_SUBJECT = "teacher"
"""The many-step teacher's own row: comparing it with itself says nothing, so such scores are left out there."""


class Kept(Protocol):
    """What is kept of the points of a row: all of them, or their moments."""

    count: int

    def update(self, points: Tensor) -> None:
        """Take in points (N, F)."""


K = TypeVar("K", bound=Kept)


class DistanceEvaluator(Evaluator, Generic[K]):
    """``<prefix>_data`` and ``<prefix>_teacher``: distances to held-out data and to the many-step teacher's samples.

    Args:
        prefix: of the scores' names.
        network: what turns samples into points.
        most: held-out images looked at; None: all.
    """

    def __init__(self, prefix: str, network: FeatureNetwork, most: int | None = None) -> None:
        self._prefix = prefix
        self._network = network
        self._most = most
        self._data, self._teacher, self._row = self.empty(), self.empty(), self.empty()
        self._subject = ""

    @abstractmethod
    def empty(self) -> K:
        """Nothing kept yet."""

    @abstractmethod
    def distance(self, row: K, reference: K, what: str) -> float:
        """Between two samples of at least two points; ``what`` says what the reference is."""

    def prepare(self, context: EvaluationContext) -> None:
        self._network.to(context.device)
        self._data, self._teacher = self.empty(), self.empty()
        held_out = context.reference.held_out() if context.reference is not None else None
        if held_out is not None:
            for points in image_features(self._network, held_out[0][: self._most]):
                self._data.update(points)

    def observe_reference(self, batch: EvaluationBatch) -> None:
        self._teacher.update(batch_features(self._network, batch))

    def reset(self, subject: str) -> None:
        self._subject = subject
        self._row = self.empty()

    def update(self, batch: EvaluationBatch) -> None:
        self._row.update(batch_features(self._network, batch))

    def compute(self) -> Mapping[str, float]:
        """A side with fewer than two samples is left out."""
        references = {"data": (self._data, "held-out images")}
        if self._subject != REFERENCE_SUBJECT:
            references["teacher"] = (self._teacher, "samples of the teacher")
        return {
            f"{self._prefix}_{name}": self.distance(self._row, reference, what)
            for name, (reference, what) in references.items()
            if min(reference.count, self._row.count) >= 2
        }


@final
class PointBuffer:
    """The first ``capacity`` points of a stream, in order; later ones are dropped, so memory is bounded."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._parts: list[Tensor] = []
        self.count = 0

    def update(self, points: Tensor) -> None:
        """Take in points (N, F)."""
        kept = points[: self._capacity - self.count]
        if len(kept):
            self._parts.append(kept)
            self.count += len(kept)

    def points(self) -> Tensor:
        """(count, F), count at least 1."""
        return torch.cat(self._parts)
