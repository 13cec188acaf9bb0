"""A teacher's velocity with condition and guidance filled in, counting its evaluations."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from freeflow_core.interfaces import Teacher
from freeflow_core.types import Condition, Guidance

_ROUNDING = 1e-12
"""A grid time may miss an interval's end by rounding alone (0.3 against 0.30000000000000004); it still counts."""


@final
class GuidedField:
    """v(x, t) for one batch of samples.

    Args:
        teacher: the velocity.
        z: (N, *D) the batch's noise.
        condition: N conditions.
        guidance: weights (N,) on the host, and the interval, closed at both ends.

    Attributes:
        evaluations: network evaluations per sample so far; a guided sample's evaluation counts two.
    """

    def __init__(self, teacher: Teacher, z: Tensor, condition: Condition, guidance: Guidance) -> None:
        if guidance.weight.shape != z.shape[:1]:
            raise ValueError(
                f"guidance needs one weight for each of {len(z)} samples, got {tuple(guidance.weight.shape)}"
            )
        self._teacher = teacher
        self._condition = condition
        self._guidance = Guidance(guidance.weight, guidance.low - _ROUNDING, guidance.high + _ROUNDING)
        self._num_samples = len(z)
        self.dtype = network_dtype(teacher, z)
        self.evaluations = 0.0

    def state_dtype(self, name: str) -> torch.dtype:
        """The configured precision of the state, raised to float64 for a float64 network."""
        return torch.promote_types(getattr(torch, name), self.dtype)

    def weights(self, time: float) -> Tensor:
        """(N,) guidance weights at ``time``; 1 outside the interval."""
        return self._guidance.at(self._times(time))

    def velocity(self, x: Tensor, time: float, weight: Tensor) -> Tensor:
        """v (N, *D) in the dtype of ``x``, guided by ``weight`` (N,); counted."""
        self.evaluations += 1 + float((weight != 1).double().mean())
        v = self._teacher.guided_velocity(x.to(self.dtype), self._times(time), self._condition, weight)
        return v.to(x.dtype)

    def _times(self, time: float) -> Tensor:
        return torch.full((self._num_samples,), time, dtype=torch.float64)


def network_dtype(network: nn.Module, z: Tensor) -> torch.dtype:
    """The dtype of a network's weights; a network without weights computes in the dtype of its states."""
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), z.dtype)
