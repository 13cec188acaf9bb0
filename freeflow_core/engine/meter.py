"""Metrics gathered on the device and read at the logging interval: the only host sync of training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from accelerate import Accelerator
from torch import Tensor


@final
class Meter:
    """Running means by name, and the count of skipped steps."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._skipped = torch.zeros((), device=accelerator.device)

    @property
    def pending(self) -> bool:
        """Whether steps were taken since the last reading."""
        return bool(self._counts)

    def add(self, values: Mapping[str, Tensor], skipped: Tensor) -> None:
        """One step's scalars, all 0-d on the device. ``skipped`` is 1 when the step was not applied."""
        for name, value in values.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1
        self._skipped = self._skipped + skipped

    def read(self) -> tuple[dict[str, float], int]:
        """Means since the last reading, over all processes, and the number of steps skipped. Then start anew."""
        names = sorted(self._sums)
        stacked = torch.stack([self._skipped, *(self._sums[n].to(self._skipped.device) for n in names)])
        if self._accelerator.num_processes > 1:
            stacked = self._accelerator.reduce(stacked, reduction="mean")
        skipped, *sums = stacked.tolist()
        means = {name: total / self._counts[name] for name, total in zip(names, sums, strict=True)}
        self._sums, self._counts = {}, {}
        self._skipped = torch.zeros_like(self._skipped)
        return means, round(skipped)
