"""Network passes, counted while a step runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from freeflow_core.interfaces import Teacher
from freeflow_core.types import Condition

TEACHER = "teacher"


@dataclass
class PassCount:
    """Rows that went through one network, with and without gradient."""

    gradient_rows: int = 0
    other_rows: int = 0

    def add(self, x: Tensor) -> None:
        """Count one pass of ``x`` (N, *D)."""
        if torch.is_grad_enabled():
            self.gradient_rows += x.shape[0]
        else:
            self.other_rows += x.shape[0]


@contextmanager
def counted_passes(networks: Mapping[str, nn.Module], teacher: Teacher | None) -> Iterator[dict[str, PassCount]]:
    """Count rows through each network's ``forward``, and through the teacher's ``velocity``."""
    counts = {name: PassCount() for name in networks}
    handles = [
        network.register_forward_pre_hook(lambda module, inputs, count=counts[name]: count.add(inputs[0]))
        for name, network in networks.items()
    ]
    if teacher is not None:
        counts[TEACHER] = PassCount()
        velocity = teacher.velocity

        def counted(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
            counts[TEACHER].add(x_t)
            return velocity(x_t, t, condition)

        vars(teacher)["velocity"] = counted  # shadows the method meanwhile
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()
        if teacher is not None:
            del vars(teacher)["velocity"]
