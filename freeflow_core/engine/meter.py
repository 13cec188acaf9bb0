"""What training measures: sums on the device between two readings, and means over processes."""

from collections.abc import Mapping
from typing import final

import torch
from accelerate import Accelerator
from torch import Tensor


def reduce_mean(accelerator: Accelerator, value: Tensor) -> Tensor:
    """Mean of a tensor over processes."""
    if accelerator.num_processes == 1:
        return value
    reduced: Tensor = accelerator.reduce(value, reduction="mean")
    return reduced


@final
class Meter:
    """Means of metrics by name, and the count of skipped steps, gathered on the device.

    Steps with the same names share one vector of sums, so that a step costs one stack and one sum.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._counts: dict[tuple[str, ...], int] = {}

    @property
    def pending(self) -> bool:
        return bool(self._counts)

    def add(self, values: Mapping[str, Tensor], skipped: Tensor) -> None:
        """One step's scalars, all 0-d on the device. ``skipped`` is 1 when the step was not applied."""
        stacked = torch.stack([skipped, *values.values()]).detach().float()
        names = tuple(values)
        if names in self._sums:
            self._sums[names] += stacked
            self._counts[names] += 1
        else:
            self._sums[names], self._counts[names] = stacked, 1

    def read(self) -> tuple[dict[str, float], int]:
        """Means since the last reading, over all processes, and the number of steps skipped. Then start anew."""
        if not self.pending:
            return {}, 0
        groups = list(self._sums)
        values = iter(reduce_mean(self._accelerator, torch.cat([self._sums[group] for group in groups])).tolist())
        totals: dict[str, float] = {}
        counts: dict[str, int] = {}
        skipped = 0.0
        for group in groups:
            skipped += next(values)
            for name in group:
                totals[name] = totals.get(name, 0.0) + next(values)
                counts[name] = counts.get(name, 0) + self._counts[group]
        self._sums, self._counts = {}, {}
        return {name: total / counts[name] for name, total in sorted(totals.items())}, round(skipped)
