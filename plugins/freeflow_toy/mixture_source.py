"""Exact samples of a Gaussian mixture as training data, and the codec of data that are states already."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Self, final

import torch
from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import BuildContext, Codec, Source, block_starts
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.types import Batch, Condition
from freeflow_toy.config import MixtureSourceConfig, StatesConfig
from freeflow_toy.gaussian_mixture import GaussianMixtureTeacher


@final
class MixtureSource(Source):
    """Endless data whose exact velocity is the ``gaussian-mixture`` teacher's with the same options.

    Sample i and its label are a function of (seed, i) alone: the label from p(c), the state from p(x | c). No sample
    is ever seen twice, so a data-based objective here meets its assumptions exactly.

    Args:
        mixture: what is sampled.
        seed: in [0, 2**63).
        num_held_out: samples returned by ``held_out``, of a stream of their own.
    """

    encoded_by = "states"

    def __init__(self, mixture: GaussianMixtureTeacher, seed: int, num_held_out: int) -> None:
        self._mixture = mixture
        self._seed = seed
        self._num_held_out = num_held_out
        self.num_classes = mixture.num_classes

    @classmethod
    def from_config(cls, config: MixtureSourceConfig, context: BuildContext) -> Self:
        mixture = GaussianMixtureTeacher.from_config(config, context)
        return cls(mixture.double().cpu(), config.seed, config.held_out)

    def batches(self, start: int, batch_size: int, rank: int, world_size: int) -> Iterator[Batch]:
        """As the interface says, float32 states (N, *D)."""
        starts = block_starts(start, batch_size, rank, world_size)
        return (Batch(*self._rows("training", first, batch_size)) for first in starts)

    def held_out(self) -> tuple[Tensor, Condition] | None:
        """Float states (M, *D) and their labels, or None without any."""
        return self._rows("held-out", 0, self._num_held_out) if self._num_held_out else None

    def _rows(self, purpose: str, start: int, count: int) -> tuple[Tensor, Condition]:
        # A seed of its own for each purpose, so that no stream meets one of the run's with equal seeds.
        digest = hashlib.blake2b(f"gaussian-mixture/{purpose}/{self._seed}".encode(), digest_size=8).digest()
        seed = int.from_bytes(digest, "little") >> 1
        draws = PhiloxDraws(seed, torch.arange(start, start + count), dtype=torch.float64)
        condition = self._mixture.sample_condition(draws)
        return self._mixture.sample_data(draws, condition).float(), condition


@final
class StatesCodec(Codec):
    """What a source yields already are states: encoding passes them on, whatever their shape."""

    def __init__(self, config: StatesConfig) -> None:
        """There is nothing to choose."""

    def encode(self, images: Tensor) -> Tensor:
        """The float states (N, *D) given. Raises ``ConfigError`` for integers, which are images to be coded."""
        if not images.is_floating_point():
            raise ConfigError(
                f"The states codec passes float states on, got {images.dtype} {tuple(images.shape)}. uint8 images need "
                "codec: pixels."
            )
        return images

    def state_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, ...]:
        return image_shape

    def decode(self, x: Tensor) -> Tensor:
        """uint8 values for pictures, with [-1, 1] as 0..255; states beyond are clamped."""
        return x.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
