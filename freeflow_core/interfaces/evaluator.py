"""Scores of streamed samples, and what ranks candidate samples."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from freeflow_core.interfaces.build import Buildable
from freeflow_core.interfaces.codec import Codec
from freeflow_core.interfaces.source import Source
from freeflow_core.interfaces.student import Student
from freeflow_core.interfaces.teacher import Teacher
from freeflow_core.types import Condition, Guidance


@dataclass(frozen=True)
class EvaluationBatch:
    """A batch of one row of the table (teacher many steps, student one step, ...).

    Args:
        images: uint8 (N, C, H, W), or the states themselves where they are not images.
        condition: their conditions.
        index: (N,) sample indices; None for real images.
        x: (N, *D) states; None for real images.
        z: (N, *D) the noise each started from; None for real images.
        reference_x: (N, *D) the many-step teacher's end points from the same noise and condition, or None.
        guidance: the guidance they were drawn with; None for real images.
    """

    images: Tensor
    condition: Condition
    index: Tensor | None = None
    x: Tensor | None = None
    z: Tensor | None = None
    reference_x: Tensor | None = None
    guidance: Guidance | None = None
    _memo: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def memo(self, key: str, compute: Callable[[], Any]) -> Any:
        """Compute once per batch what several evaluators share, such as features."""
        if key not in self._memo:
            self._memo[key] = compute()
        return self._memo[key]


@dataclass(frozen=True)
class EvaluationContext:
    """What evaluators may use. ``reference`` holds the held-out data; ``student`` is None for teacher-only runs."""

    device: torch.device
    codec: Codec
    teacher: Teacher | None = None
    student: Student | None = None
    reference: Source | None = None


ERROR = "_error"
"""A score named so after another one is that one's standard error; tables show the two as one."""


def without_errors(names: Iterable[str]) -> list[str]:
    """The names that are not another one's standard error, in their order."""
    known = dict.fromkeys(names)
    return [name for name in known if not (name.endswith(ERROR) and name.removesuffix(ERROR) in known)]


def score_texts(scores: Mapping[str, float], number: Callable[[float], str]) -> dict[str, str]:
    """The scores of a row as text by ``number``, with a standard error's two digits behind those that have one."""

    def text(name: str) -> str:
        error = scores.get(name + ERROR)
        return number(scores[name]) + (f" ± {error:.2g}" if error is not None else "")

    return {name: text(name) for name in without_errors(scores)}


class Evaluator(Buildable):
    """Streams batches of one row and returns its scores.

    Life: ``prepare`` once, ``observe_reference`` with the many-step teacher's own samples, then for each row
    ``reset``, ``update`` ..., ``compute``.

    Attributes:
        paired: True: it compares sample by sample, and gets batches with ``reference_x``, drawn from the reference's
            own noise. False: it compares distributions, and gets batches drawn from other noise.
    """

    paired: ClassVar[bool] = False

    @abstractmethod
    def prepare(self, context: EvaluationContext) -> None:
        """Load networks and reference statistics. Raises ``ConfigError`` for what is missing."""

    def observe_reference(self, batch: EvaluationBatch) -> None:
        """One batch of the many-step teacher's samples, the reference for distances to the teacher."""

    @abstractmethod
    def reset(self, subject: str) -> None:
        """Start a row: ``"data"``, ``"teacher"``, ``"teacher_1_step"``, ``"student"``, ``"student_jump"``, ..."""

    def extract(self, batch: EvaluationBatch) -> None:
        """Memorise what is costly about a batch, such as features (:meth:`EvaluationBatch.memo`), before ``update``.

        Among several processes the one that drew the batch does this; ``update`` follows on each, so that all know the
        whole row. What ``reference_x`` enters may not be memorised. Default: nothing.
        """

    @abstractmethod
    def update(self, batch: EvaluationBatch) -> None:
        """Take in one batch."""

    @abstractmethod
    def compute(self) -> Mapping[str, float]:
        """The row's scores by name; a score that has no meaning for this row is left out."""


class Verifier(Buildable):
    """Says how good samples are, for best-of-N search. It never sees the teacher's samples of the same noise."""

    @abstractmethod
    def prepare(self, context: EvaluationContext) -> None:
        """Load networks and reference data, once. Raises ``ConfigError`` for what is missing."""

    @abstractmethod
    def score(self, images: Tensor, condition: Condition) -> Tensor:
        """(N,) float scores of samples as a codec decodes them (uint8 (N, C, H, W), or states); higher is better."""
