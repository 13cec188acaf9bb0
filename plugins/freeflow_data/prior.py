"""No data: what data-free training sees."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Self, final

from torch import Tensor

from freeflow_core.config import ComponentConfig
from freeflow_core.interfaces import BuildContext, Source
from freeflow_core.types import Batch, Condition


@final
class PriorSource(Source):
    """Batches that hold neither states nor conditions: noise and labels are drawn by the engine."""

    has_data = False

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        return cls()

    def batches(self, start: int, batch_size: int, rank: int, world_size: int) -> Iterator[Batch]:
        return itertools.repeat(Batch(None, None))

    def held_out(self) -> tuple[Tensor, Condition] | None:
        return None
