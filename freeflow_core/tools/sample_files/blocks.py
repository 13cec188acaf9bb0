"""How the indices 0 ... num - 1 are cut into blocks: the unit that is drawn by one process and written at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

_SMALLEST_BLOCK = 64


def block_size(batch_size: int) -> int:
    """The smallest multiple of the batch size that makes a file worth writing."""
    return batch_size * -(-_SMALLEST_BLOCK // batch_size)


@final
@dataclass(frozen=True)
class Blocks:
    """Block b holds the indices b size ... (b + 1) size - 1, the last one fewer."""

    num: int
    size: int

    def __len__(self) -> int:
        return -(-self.num // self.size)

    def indices(self, block: int) -> range:
        """The indices of a block."""
        return range(block * self.size, min((block + 1) * self.size, self.num))

    def batches(self, block: int, batch_size: int) -> Iterator[Tensor]:
        """A block's indices in batches. The cuts depend on the block alone, so a resumed run makes the same ones."""
        indices = self.indices(block)
        for first in indices[::batch_size]:
            yield torch.arange(first, min(first + batch_size, indices.stop))

    def count(self, blocks: set[int]) -> int:
        """Samples in these blocks."""
        return sum(len(self.indices(block)) for block in blocks)
