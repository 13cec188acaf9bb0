"""What ranks candidate samples."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from freeflow_core.interfaces.build import Buildable
from freeflow_core.interfaces.evaluator import EvaluationContext
from freeflow_core.types import Condition


class Verifier(Buildable):
    """Says how good samples are, for best-of-N search. It never sees the teacher's samples of the same noise."""

    @abstractmethod
    def prepare(self, context: EvaluationContext) -> None:
        """Load networks and reference data, once. Raises ``ConfigError`` for what is missing."""

    @abstractmethod
    def score(self, images: Tensor, condition: Condition) -> Tensor:
        """(N,) float scores of samples as a codec decodes them (uint8 (N, C, H, W), or states); higher is better."""
