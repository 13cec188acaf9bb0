"""Images, states and held-out data for evaluators and verifiers: handwritten digits, which come with freeflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from freeflow_core.interfaces import Codec, EvaluationBatch, EvaluationContext, Source
from freeflow_core.testing.contracts.surroundings import WithTeacher
from freeflow_core.testing.contracts.tensors import draws_of
from freeflow_core.types import Condition, Guidance, index_condition

ROWS = 48


class EvaluationScene(WithTeacher):
    """How the contracts of evaluators and verifiers get what they look at.

    Attributes:
        source: where held-out images come from.
        source_options: that source's options.
        codec: of these images.
        student: student that stands beside the teacher ``teacher``.
        student_options: that student's options.
    """

    teacher: ClassVar[str | None] = "digits"
    source: ClassVar[str] = "digits"
    source_options: ClassVar[Mapping[str, Any]] = {}
    codec: ClassVar[str] = "pixels"
    student: ClassVar[str] = "transformer"
    student_options: ClassVar[Mapping[str, Any]] = {}

    def context(self, *, networks: bool = False, device: str = "cpu") -> EvaluationContext:
        """What ``prepare`` gets; ``networks``: with teacher and student."""
        codec: Codec = self.build_other("codec", self.codec)
        reference: Source = self.build_other("source", self.source, self.source_options)
        if not networks:
            return EvaluationContext(torch.device(device), codec, reference=reference)
        teacher = self.build_teacher(self.teachers()[0], device)
        student = self.student_beside(teacher, self.student, self.student_options, device).eval()
        return EvaluationContext(torch.device(device), codec, teacher, student, reference)

    def real_images(self, context: EvaluationContext, rows: int = ROWS) -> tuple[Tensor, Condition]:
        """Held-out images, or training images where none are held out."""
        assert context.reference is not None
        found = context.reference.held_out() or context.reference.training_images()
        if found is None:
            self.skip(f"the source {self.source!r} has no images to look at")
        assert found is not None
        chosen = torch.arange(min(rows, len(found[0])))
        return found[0][chosen], index_condition(found[1], chosen)

    def batch(self, context: EvaluationContext, rows: Tensor, *, paired: bool) -> EvaluationBatch:
        """The chosen rows of the images, with states, noise and, for paired evaluators, reference states near them."""
        images, condition = self.real_images(context)
        x = context.codec.encode(images)
        draws = draws_of(len(x))
        z = draws.noise("prior", tuple(x.shape[1:]))
        near = x + 0.1 * draws.noise("difference", tuple(x.shape[1:]))
        return EvaluationBatch(
            images=images[rows],
            condition=index_condition(condition, rows),
            index=rows,
            x=x[rows],
            z=z[rows],
            reference_x=near[rows] if paired else None,
            guidance=Guidance(torch.ones(len(rows), dtype=torch.float64)),
        )
