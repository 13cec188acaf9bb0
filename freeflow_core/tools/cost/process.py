"""The part of an ``Accelerator`` that a training step uses, for a run that is only planned: nothing is started."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import final

import torch
from torch import Tensor, nn


@final
class PlannedProcess:
    """The first of ``num_processes`` processes, working alone: what others would send, it has itself."""

    def __init__(self, num_processes: int, device: torch.device) -> None:
        self.num_processes = num_processes
        self.process_index = 0
        self.is_main_process = True
        self.device = device

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def reduce(self, tensor: Tensor, reduction: str = "mean") -> Tensor:
        return tensor

    def prepare_model(self, network: nn.Module) -> nn.Module:
        return network

    def no_sync(self, network: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()
