"""Screen noises with the one-step student, hand the best to the teacher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_core.evaluation.sampling import Generator, SampleBatch
from freeflow_core.interfaces import FlowMapSampler, VelocitySampler, Verifier


@final
class BestOfN:
    """The teacher's samples from the best of N noises each, judged by the student's one step from them.

    Ma et al. 2025 search over noises with the sampler itself; FreeFlow (Tong et al. 2025) with its student, whose
    single step shows where the teacher's many would lead.

    Sample i screens the noises of the indices i N ... (i + 1) N - 1, so that it depends on the seed, i and N alone.
    Its evaluations are the N of the student and all of the teacher's, unconditional ones included; the verifier's own
    network is not counted. With N = 1 nothing is screened, and nothing but the teacher is paid for.

    Args:
        screen: a one-step generator of the student.
        finish: a generator of the teacher, with the same seed.
        verifier: prepared.
        candidates: N.
    """

    def __init__(self, screen: Generator, finish: Generator, verifier: Verifier, candidates: int) -> None:
        if candidates < 1:
            raise ConfigError(f"The number of candidates must be at least 1, got {candidates}.")
        if screen.sample_shape != finish.sample_shape:
            raise ConfigError(
                f"The student makes states of shape {screen.sample_shape}, the teacher {finish.sample_shape}. Search "
                "with the teacher that the student was distilled from."
            )
        assert isinstance(screen.sampler, FlowMapSampler)
        assert isinstance(finish.sampler, VelocitySampler)
        self._screen = screen
        self._finish = finish
        self._verifier = verifier
        self._candidates = candidates

    def batches(self, start: int, num: int, batch_size: int) -> Iterator[SampleBatch]:
        """Samples ``start`` ... ``start + num - 1``; at most ``batch_size`` states are held at once."""
        for first in range(start, start + num, batch_size):
            index = torch.arange(first, min(first + batch_size, start + num))
            yield self.batch(index, batch_size)

    def batch(self, index: Tensor, batch_size: int) -> SampleBatch:
        """The samples ``index`` (N,)."""
        chosen, _, seconds = self.screen(index, batch_size)
        batch = self._finish.batch(index, chosen)
        paid = self._candidates if self._candidates > 1 else 0
        return replace(batch, num_evaluations=batch.num_evaluations + paid, seconds=batch.seconds + seconds)

    def screen(self, index: Tensor, batch_size: int) -> tuple[Tensor, Tensor, float]:
        """The noise chosen for each of ``index`` (n,), all candidates' scores (n, N), and the seconds it took."""
        noises = index[:, None] * self._candidates + torch.arange(self._candidates)
        if self._candidates == 1:
            return noises[:, 0], torch.zeros(len(index), 1, dtype=torch.float64), 0.0
        samples = index.repeat_interleave(self._candidates)
        scores, seconds = [], 0.0
        parts = zip(torch.split(samples, batch_size), torch.split(noises.flatten(), batch_size), strict=True)
        for rows, noise in parts:
            shown = self._screen.batch(rows, noise)
            scores.append(self._verifier.score(shown.images, shown.condition).cpu())
            seconds += shown.seconds
        table = torch.cat(scores).reshape(noises.shape)
        return noises.gather(1, table.argmax(1, keepdim=True))[:, 0], table, seconds
