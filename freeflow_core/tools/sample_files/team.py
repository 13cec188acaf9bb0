"""The processes that draw samples together."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import torch
from accelerate.utils import broadcast_object_list

from freeflow_core.config import RuntimeConfig
from freeflow_core.engine.device import choose_device, start_accelerator
from freeflow_core.errors import FreeflowError

_T = TypeVar("_T")


@dataclass(frozen=True)
class Team:
    """This process among ``size`` of them; rank 0 is the main process."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, runtime: RuntimeConfig) -> Self:
        """The processes of torchrun, or this one alone. Raises ``ConfigError`` for a device that is not there."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            if runtime.threads is not None:
                torch.set_num_threads(runtime.threads)
            return cls(choose_device(runtime))
        accelerator = start_accelerator(runtime)
        return cls(accelerator.device, accelerator.process_index, accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and puts the files together."""
        return self.rank == 0

    def from_main(self, make: Callable[[], _T]) -> _T:
        """What ``make`` returns on the main process, on every process; its ``FreeflowError`` likewise."""
        found: list[Any] = [None]
        if self.is_main:
            try:
                found = [make()]
            except FreeflowError as error:
                found = [error]
        if self.size > 1:
            broadcast_object_list(found)
        if isinstance(found[0], FreeflowError):
            raise found[0]
        result: _T = found[0]
        return result
