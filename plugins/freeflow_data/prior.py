"""No data: what data-free training sees."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import final

from torch import Tensor

from freeflow_core.interfaces import Source
from freeflow_core.types import Batch, Condition
from freeflow_data.config import PriorConfig


@final
class PriorSource(Source):
    """Batches that hold neither states nor conditions: noise and labels are drawn by the engine."""

    has_data = False

    def __init__(self, config: PriorConfig) -> None:
        """There is nothing to choose."""

    def batches(self, start: int, batch_size: int, rank: int, world_size: int) -> Iterator[Batch]:
        return itertools.repeat(Batch(None, None))

    def held_out(self) -> tuple[Tensor, Condition] | None:
        return None
