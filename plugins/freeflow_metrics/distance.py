"""Distances between sets of samples: what such evaluators share, the energy distance, the kernel distance."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Generic, Protocol, TypeVar, final

import numpy as np
import torch
from torch import Tensor, nn

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import EvaluationBatch, EvaluationContext, Evaluator
from freeflow_core.math.distances import energy_distance
from freeflow_core.torchvision_ops import ensure_torchvision_ops
from freeflow_metrics.config import EnergyDistanceConfig, KernelConfig
from freeflow_metrics.features import FeatureNetwork, batch_features, build_features, image_features

REFERENCE_SUBJECT = "teacher"
"""The many-step teacher's own row: comparing it with itself says nothing, so such scores are left out there."""


class Kept(Protocol):
    """What is kept of the points of a row: all of them, or their moments."""

    count: int

    def update(self, points: Tensor) -> None:
        """Take in points (N, F)."""


K = TypeVar("K", bound=Kept)


class DistanceEvaluator(Evaluator, Generic[K]):
    """``<prefix>_data`` and ``<prefix>_teacher``: distances to held-out data and to the many-step teacher's samples.

    ``network`` turns samples into points; at most ``most`` held-out images are looked at.
    """

    def __init__(self, prefix: str, network: FeatureNetwork, most: int | None = None) -> None:
        self._prefix = prefix
        self._network = network
        self._most = most
        self._data, self._teacher, self._row = self.empty(), self.empty(), self.empty()
        self._subject = ""

    @abstractmethod
    def empty(self) -> K:
        """Nothing kept yet."""

    @abstractmethod
    def measure(self, name: str, reference: K, what: str) -> Mapping[str, float]:
        """The row's distance ``name`` to a reference that ``what`` describes; both have at least two points."""

    def prepare(self, context: EvaluationContext) -> None:
        self._network.to(context.device)
        self._data, self._teacher = self.empty(), self.empty()
        held_out = context.reference.held_out() if context.reference is not None else None
        if held_out is not None:
            for points in image_features(self._network, held_out[0][: self._most]):
                self._data.update(points)

    def observe_reference(self, batch: EvaluationBatch) -> None:
        self._teacher.update(batch_features(self._network, batch))

    def reset(self, subject: str) -> None:
        self._subject = subject
        self._row = self.empty()

    def extract(self, batch: EvaluationBatch) -> None:
        batch_features(self._network, batch)

    def update(self, batch: EvaluationBatch) -> None:
        self._row.update(batch_features(self._network, batch))

    def compute(self) -> Mapping[str, float]:
        """A side with fewer than two samples is left out."""
        references = {"data": (self._data, "held-out images")}
        if self._subject != REFERENCE_SUBJECT:
            references["teacher"] = (self._teacher, "samples of the teacher")
        scores: dict[str, float] = {}
        for name, (reference, what) in references.items():
            if min(reference.count, self._row.count) >= 2:
                scores |= self.measure(f"{self._prefix}_{name}", reference, what)
        return scores


@final
class PointBuffer:
    """The first ``capacity`` points of a stream, in order; later ones are dropped, so memory is bounded."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._parts: list[Tensor] = []
        self.count = 0

    def update(self, points: Tensor) -> None:
        kept = points[: self._capacity - self.count]
        if len(kept):
            self._parts.append(kept)
            self.count += len(kept)

    def points(self) -> Tensor:
        """(count, F), count at least 1."""
        return torch.cat(self._parts)


@final
class RawStates(FeatureNetwork):
    """Points are the states themselves, or uint8 images scaled to [-1, 1]."""

    def __init__(self, max_dimension: int) -> None:
        super().__init__(f"states/{max_dimension}", nn.Flatten())
        self._max_dimension = max_dimension

    def features(self, images: Tensor) -> Tensor:
        """(N, dim) float64. Raises ``ConfigError`` for states that are too large."""
        points: Tensor = self._network(images.detach().cpu().double())
        if points.shape[1] > self._max_dimension:
            raise ConfigError(
                f"The energy-distance evaluator compares raw states, and these have {points.shape[1]:,} entries each, "
                f"more than max_dimension={self._max_dimension:,}; distances between raw large images say little. Use "
                "the frechet or kernel evaluator, or raise max_dimension."
            )
        return points if images.dtype != torch.uint8 else points / 127.5 - 1


@final
class EnergyDistanceEvaluator(DistanceEvaluator[PointBuffer]):
    """``energy_data`` and ``energy_teacher``. Unbiased, about 0 between equal distributions."""

    def __init__(self, config: EnergyDistanceConfig) -> None:
        self._capacity = config.max_samples
        super().__init__("energy", RawStates(config.max_dimension), config.max_samples)

    def empty(self) -> PointBuffer:
        return PointBuffer(self._capacity)

    def measure(self, name: str, reference: PointBuffer, what: str) -> Mapping[str, float]:
        return {name: energy_distance(self._row.points(), reference.points())}


def kernel_distance(first: Tensor, second: Tensor, *, num_subsets: int, subset_size: int, seed: int) -> float:
    """Unbiased squared MMD with the kernel (x . y / F + 1)^3 (Binkowski et al. 2018, section 4), mean over subsets.

    Computed by clean-fid, on subsets that depend on ``seed`` alone. It can be slightly negative: unbiased.

    Features are (N, F) and (M, F); at most ``subset_size`` rows are drawn from each, without replacement.

    Raises:
        ValueError: fewer than two rows on either side.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError(f"a kernel distance needs two samples on either side, got {len(first)} and {len(second)}")
    ensure_torchvision_ops()
    from cleanfid import fid

    points = first.double().numpy(), second.double().numpy()
    state = np.random.get_state()  # it draws from numpy's global generator: the caller's comes back afterwards
    np.random.seed(seed)
    try:
        return float(fid.kernel_distance(*points, num_subsets=num_subsets, max_subset_size=subset_size))
    finally:
        np.random.set_state(state)


@final
class KernelEvaluator(DistanceEvaluator[PointBuffer]):
    """``kd_data`` and ``kd_teacher``; with Inception features ``kid_data`` and ``kid_teacher``.

    Unbiased, so usable where samples are too few for the Fréchet distance; about 0 between equal distributions.
    """

    def __init__(self, config: KernelConfig) -> None:
        self._config = config
        network = build_features(config)
        super().__init__(f"k{network.letters}", network, config.max_samples)

    def empty(self) -> PointBuffer:
        return PointBuffer(self._config.max_samples)

    def measure(self, name: str, reference: PointBuffer, what: str) -> Mapping[str, float]:
        options = {name: getattr(self._config, name) for name in ("num_subsets", "subset_size", "seed")}
        return {name: kernel_distance(reference.points(), self._row.points(), **options)}
