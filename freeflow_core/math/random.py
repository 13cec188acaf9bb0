"""Random numbers that depend on (seed, stream, global sample index) alone.

Philox (Salmon et al. 2011) is counter-based: word w of sample i is a pure function of the key and the counter, so a
restart, another batch size or another number of processes changes nothing. Normals come from the inverse normal
distribution function, evaluated value by value, so that vector lengths cannot change a bit.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
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
    digest = hashlib.blake2b(stream.encode(), digest_size=8).digest()
    key = np.array([seed, int.from_bytes(digest, "little")], dtype=np.uint64)
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


def _normal(words: np.ndarray) -> np.ndarray:
    return scipy.special.ndtri(uniform_from_words(words))


@final
class Lookahead:
    """Draws of the coming steps, made together where batches are small, for a call costs more than its numbers then.
    Where they are large, the next step's are made by a thread beside the present step: a GPU would wait for them.

    Step j of a run asks for the indices of step 0 plus j times ``stride``, the rows of the global batch, so what later
    steps will ask for is known. The numbers are the same as without it.
    """

    MOST_STEPS = 16

    def __init__(self, stride: int, max_values: int = 2**17) -> None:
        self._stride = stride
        self._max_values = max_values  # held per stream; one that needs more than half of them is drawn step by step
        self._held: dict[tuple[object, ...], tuple[int, np.ndarray]] = {}
        self._coming: dict[tuple[object, ...], tuple[int, Future[np.ndarray]]] = {}
        self._beside = ThreadPoolExecutor(1, "freeflow-draws")  # starts no thread before there is work for it

    def take(
        self, name: tuple[object, ...], index: np.ndarray, columns: int, draw: Callable[[np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """``draw(index)``, (N, columns); read only. ``name`` tells streams and distributions apart."""
        if not len(index):
            return draw(index)
        first = int(index[0])
        key = (*name, columns, first % self._stride, (index - first).tobytes())
        if key in self._held:
            start, values = self._held[key]
            step, between = divmod(first - start, self._stride)
            if between == 0 and 0 <= step < len(values):
                return values[step]
        steps = min(self.MOST_STEPS, self._max_values // (len(index) * columns))
        if steps < 2:
            expected, coming = self._coming.pop(key, (None, None))
            self._coming[key] = first + self._stride, self._beside.submit(draw, index + self._stride)
            return draw(index) if coming is None or expected != first else coming.result()
        ahead = index + self._stride * np.arange(steps)[:, None]
        values = draw(ahead.reshape(-1)).reshape(steps, len(index), columns)
        values.flags.writeable = False
        self._held[key] = (first, values)
        return values[0]


@final
class PhiloxDraws(Draws):
    """Draws of the samples ``index``; use each stream with one shape only.

    Args:
        seed: in [0, 2**63).
        index: (N,) global sample indices.
        position: (N,) places in the global batch.
        batch_size: rows of the global batch.
        device, dtype: of the noise.
        lookahead: of the run whose steps these draws belong to, or None.
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
        lookahead: Lookahead | None = None,
    ) -> None:
        self.seed = seed
        self.index = index.cpu().long()
        self.position = torch.arange(len(index)) if position is None else position
        self.batch_size = len(index) if batch_size is None else batch_size
        self.device = torch.device(device)
        self.dtype = dtype
        self._lookahead = lookahead

    def noise(self, stream: str, shape: tuple[int, ...]) -> Tensor:
        host = torch.tensor(self._draw(stream, math.prod(shape), _normal), dtype=self.dtype).reshape(-1, *shape)
        if self.device.type == "cuda":
            host = host.pin_memory()  # without which the copy would wait for all that the device has to do
        return host.to(self.device, non_blocking=True)

    def uniform(self, stream: str) -> Tensor:
        return torch.tensor(self._draw(stream, 1, uniform_from_words)[:, 0])

    def normal(self, stream: str) -> Tensor:
        return torch.tensor(self._draw(stream, 1, _normal)[:, 0])

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
            lookahead=self._lookahead,
        )

    def _draw(self, stream: str, columns: int, distribution: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """(N, columns) float64 of ``distribution``, a map from random words."""
        index = self.index.numpy()

        def draw(index: np.ndarray) -> np.ndarray:
            return distribution(philox_words(self.seed, stream, index, columns))

        if self._lookahead is None:
            return draw(index)
        return self._lookahead.take((self.seed, stream, distribution), index, columns, draw)
