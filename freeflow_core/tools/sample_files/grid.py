"""All samples in memory, for one picture of them."""

from __future__ import annotations

import torch
from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_core.evaluation.sampling import Generator
from freeflow_core.tools.sample_files.images import host_samples
from freeflow_core.tools.sample_files.parts import Cost, cost_of

_MOST_BYTES = 2**30


def grid_samples(generator: Generator, num: int, batch_size: int) -> tuple[Tensor, Cost]:
    """Images (num, C, H, W) uint8, or states (num, *D), on the host, and what they cost.

    Raises:
        ConfigError: together they are larger than a gigabyte.
    """
    cost = Cost()
    images: list[Tensor] = []
    for batch in generator.batches(0, num, batch_size):
        if batch.images[0].nbytes * num > _MOST_BYTES:
            raise ConfigError(
                f"A grid of {num:,} samples of shape {tuple(batch.images.shape[1:])} is too large for one picture. "
                "Ask for fewer, or for --format png, webp or npz, which never hold all of them in memory."
            )
        cost += cost_of(batch, is_first=not images)
        images.append(host_samples(batch))
    return torch.cat(images), cost
