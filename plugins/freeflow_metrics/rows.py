"""What evaluators know about the rows of the table."""

from __future__ import annotations

import torch
from torch import Tensor

from freeflow_core.types import Condition

REFERENCE_SUBJECT = "teacher"
"""The many-step teacher's own row: comparing it with itself says nothing, so such scores are left out there."""

STUDENT_SUBJECT = "student"
"""The one-step student's row."""


def class_labels(condition: Condition) -> Tensor | None:
    """(N,) int64 labels on the host when the condition is one label per sample; None otherwise."""
    if not isinstance(condition, Tensor) or condition.ndim != 1 or condition.is_floating_point():
        return None
    return condition.detach().cpu().to(torch.int64)
