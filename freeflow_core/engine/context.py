"""Means over the global batch, whatever the number of processes and micro-batches."""

from __future__ import annotations

from typing import final

import torch
from accelerate import Accelerator
from torch import Tensor

from freeflow_core.interfaces import Context


def reduce_mean(accelerator: Accelerator, value: Tensor) -> Tensor:
    """Mean of a tensor over processes."""
    if accelerator.num_processes == 1:
        return value
    reduced: Tensor = accelerator.reduce(value, reduction="mean")
    return reduced


@final
class ProcessContext(Context):
    """Means over processes: enough when a step is one micro-batch."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator

    def mean(self, values: Tensor) -> Tensor:
        return reduce_mean(self._accelerator, values.detach().mean())


@final
class CollectingContext(Context):
    """First pass of an accumulated step: notes the local means in the order they are asked for."""

    def __init__(self) -> None:
        self.means: list[Tensor] = []

    def mean(self, values: Tensor) -> Tensor:
        self.means.append(values.detach().mean())
        return self.means[-1]


@final
class ReplayingContext(Context):
    """Second pass: answers with the global means of the first, in the same order."""

    def __init__(self, accelerator: Accelerator, collected: list[list[Tensor]]) -> None:
        local = torch.stack([torch.stack(means) for means in collected]).mean(0)
        self._means = list(reduce_mean(accelerator, local).unbind())
        self._next = 0

    def rewind(self) -> None:
        """Before each micro-batch."""
        self._next = 0

    def mean(self, values: Tensor) -> Tensor:
        self._next += 1
        return self._means[self._next - 1]
