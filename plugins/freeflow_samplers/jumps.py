"""One jump of a student for a whole batch."""

from __future__ import annotations

import torch
from torch import Tensor

from freeflow_core.interfaces import Student
from freeflow_core.types import Condition, Guidance
from freeflow_samplers.guided_field import network_dtype


def student_jump(
    student: Student, x: Tensor, time: float, next_time: float, condition: Condition, guidance: Guidance
) -> Tensor:
    """X(x, t, s) (N, *D) in the student's dtype, at least float32, for one pair of times."""
    dtype = torch.promote_types(network_dtype(student, x), torch.float32)
    t = torch.full((len(x),), time, dtype=torch.float64)
    s = torch.full((len(x),), next_time, dtype=torch.float64)
    return student.flow_map(x.to(dtype), t, s, condition, guidance.weight)
