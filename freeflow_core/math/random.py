"""Random numbers that depend on (seed, stream, global sample index) alone.

Philox (Salmon et al. 2011) is counter-based: word w of sample i is a pure function of the key and the counter, so a
restart, another batch size or another number of processes changes nothing. Normals come from the inverse normal
distribution function, evaluated value by value, so that vector lengths cannot change a bit.
"""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction
from typing import final

import numpy as np
import scipy.special
import torch
from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_core.types import Draws

_WORDS_PER_COUNTER = 4
_WIDEST_SPAN = 8


def philox_words(seed: int, stream: str, index: np.ndarray, words: int) -> np.ndarray:
    """(N, words) uint64: ``words`` random words of each sample ``index`` (N,) int64."""
    counters = -(-words // _WORDS_PER_COUNTER)
    key = np.array([seed, _stream_key(stream)], dtype=np.uint64)
    if len(index) > 1 and np.all(np.diff(index) > 0) and index[-1] - index[0] < _WIDEST_SPAN * len(index):
        # A strided choice, such as one half of a stratified batch: draw the whole span and keep those rows.
        span = np.arange(index[0], index[-1] + 1)
        if len(span) > len(index):
            return philox_words(seed, stream, span, words)[index - index[0]]
    breaks = np.flatnonzero(np.diff(index) != 1) + 1
    parts = [
        np.random.Philox(key=key, counter=int(run[0]) * counters)
        .random_raw(len(run) * counters * _WORDS_PER_COUNTER)
        .reshape(len(run), -1)[:, :words]
        for run in np.split(index, breaks)
        if len(run)
    ]
    return np.concatenate(parts) if parts else np.empty((0, words), dtype=np.uint64)


def uniform_from_words(words: np.ndarray) -> np.ndarray:
    """float64 in the open interval (0, 1) from the upper 53 bits; exact, so the same on every machine."""
    return ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def _stream_key(stream: str) -> int:
    return int.from_bytes(hashlib.blake2b(stream.encode(), digest_size=8).digest(), "little")


@final
class PhiloxDraws(Draws):
    """Draws of the samples ``index``; use each stream with one shape only.

    Args:
        seed: in [0, 2**63).
        index: (N,) global sample indices.
        position: (N,) places in the global batch.
        batch_size: rows of the global batch.
        device, dtype: of the noise.
    """

    def __init__(
        self,
        seed: int,
        index: Tensor,
        *,
        position: Tensor | None = None,
        batch_size: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.seed = seed
        self.index = index.cpu().long()
        self.position = torch.arange(len(index)) if position is None else position
        self.batch_size = len(index) if batch_size is None else batch_size
        self.device = torch.device(device)
        self.dtype = dtype

    def _uniform(self, stream: str, columns: int) -> np.ndarray:
        return uniform_from_words(philox_words(self.seed, stream, self.index.numpy(), columns))

    def noise(self, stream: str, shape: tuple[int, ...]) -> Tensor:
        normal = scipy.special.ndtri(self._uniform(stream, math.prod(shape)))
        host = torch.from_numpy(normal).to(self.dtype).reshape(-1, *shape)
        return host.to(self.device, non_blocking=True)

    def uniform(self, stream: str) -> Tensor:
        return torch.from_numpy(self._uniform(stream, 1)[:, 0].copy())

    def normal(self, stream: str) -> Tensor:
        return torch.from_numpy(scipy.special.ndtri(self._uniform(stream, 1)[:, 0]))

    def integers(self, stream: str, high: int) -> Tensor:
        if high < 1:
            raise ValueError(f"integers needs high >= 1, got {high}")
        return (self.uniform(stream) * high).long()

    def split(self, share: float) -> tuple[Tensor, Tensor]:
        ratio = Fraction(share).limit_denominator(10_000)
        rows = len(self.index)
        if rows != self.batch_size and (rows * ratio).denominator != 1:
            raise ConfigError(
                f"A share of {share:g} of {rows} rows per process and micro-batch is not a whole number of rows. "
                f"Choose training.batch_size so that each of the {self.batch_size // max(rows, 1)} parts holds a "
                f"multiple of {ratio.denominator} rows."
            )
        place, top, bottom = self.position, ratio.numerator, ratio.denominator
        inside = ((place + 1) * top) // bottom > (place * top) // bottom
        return (~inside).nonzero().flatten(), inside.nonzero().flatten()

    def rows(self, rows: Tensor) -> PhiloxDraws:
        return PhiloxDraws(
            self.seed,
            self.index[rows],
            position=self.position[rows],
            batch_size=self.batch_size,
            device=self.device,
            dtype=self.dtype,
        )
