"""The rows of one step: all start at the prior, t = 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from freeflow_core.interfaces import Model, Teacher
from freeflow_core.types import Condition, index_condition


@final
@dataclass(frozen=True)
class PriorRows:
    """Rows that jump from t = 1 to s = 1 - d.

    Args:
        z: (N, *D) prior draws.
        d: (N,) durations in (0, 1], float64 on the host.
        condition: N conditions.
        guidance: (N,) guidance weights, float64 on the host.
    """

    z: Tensor
    d: Tensor
    condition: Condition
    guidance: Tensor

    @property
    def s(self) -> Tensor:
        """(N,) end times 1 - d, as networks take them: device and dtype of ``z``."""
        return on(self.z, 1 - self.d)

    def part(self, start: int, stop: int) -> PriorRows:
        """Rows start ... stop - 1."""
        rows = torch.arange(start, stop)
        return PriorRows(
            self.z[start:stop], self.d[start:stop], index_condition(self.condition, rows), self.guidance[start:stop]
        )


@final
@dataclass(frozen=True)
class Query:
    """Where the teacher is asked: ``x`` (N, *D) detached, ``t`` and resolved ``weight`` (N,) on the host."""

    x: Tensor
    t: Tensor
    weight: Tensor


def on(states: Tensor, values: Tensor) -> Tensor:
    """Host ``values`` (N,) on the device and in the dtype of ``states``."""
    return values.to(device=states.device, dtype=states.dtype, non_blocking=True)


def velocity_with_gradient(
    model: Model, x: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Tensor
) -> Tensor:
    """u(x, t, s) (N, *D) by the one gradient pass, in the states' dtype (autocast's bf16 ends here)."""
    output = model.wrapped(x, t, s, condition, on(x, guidance))
    velocity: Tensor = model.bare.average_velocity(output, x, t, s)
    return velocity.to(x.dtype)


@torch.no_grad()
def teacher_velocity(teacher: Teacher, queries: list[Query], condition: Condition) -> Tensor:
    """The guided field at all queries in one call, (N, *D) in the states' dtype; no gradient.

    Times are held within the teacher's own range.
    """
    x = torch.cat([query.x for query in queries])
    t = torch.cat([query.t for query in queries]).clamp(*teacher.time_range)
    weight = torch.cat([query.weight for query in queries])
    return teacher.guided_velocity(x, on(x, t), condition, weight).to(x.dtype)
