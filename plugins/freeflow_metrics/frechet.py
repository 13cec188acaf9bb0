"""Fréchet distances between Gaussians fitted to features."""

import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self, final

import numpy as np
import torch
from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import EvaluationBatch
from freeflow_core.interfaces.evaluator import ERROR
from freeflow_metrics.classes import class_labels
from freeflow_metrics.config import FrechetConfig
from freeflow_metrics.distance import DistanceEvaluator
from freeflow_metrics.features import batch_features, build_features, fetch_statistics

PACKAGED = {"mnist-test": "mnist", "mnist-train": "mnist"}
"""Statistics that come with the plugin, each with the features it is made of; ``make_statistics`` makes such files."""


def frechet_distance(mean1: Tensor, covariance1: Tensor, mean2: Tensor, covariance2: Tensor) -> float:
    """|m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Dowson & Landau 1982; FID in Heusel et al. 2017, eq. 6).

    Tr (C1 C2)^(1/2) is the sum of the square roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric:
    two float64 eigendecompositions instead of a general matrix square root, no imaginary parts, and singular
    covariances need no special care. Rounding below zero is clamped: the result is never negative.

    Args:
        mean1, mean2: (F,).
        covariance1, covariance2: (F, F), symmetric and positive semi-definite.
    """
    mean1, covariance1, mean2, covariance2 = (x.double() for x in (mean1, covariance1, mean2, covariance2))
    values, vectors = torch.linalg.eigh(covariance1)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    product = root @ covariance2 @ root
    trace_root = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt().sum()
    distance = (mean1 - mean2).square().sum() + covariance1.trace() + covariance2.trace() - 2 * trace_root
    return max(0.0, float(distance))


@final
class RunningMoments:
    """Mean and covariance in float64 of features (N, F), one batch at a time, whatever the batches.

    Each batch is centred by its own mean and then merged (Chan, Golub & LeVeque 1983, eq. 2.1), so that no large sums
    are subtracted from each other, as raw second moments would.
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64)

    def update(self, points: Tensor) -> None:
        if not len(points):
            return
        points = points.detach().cpu().double()
        mean = points.mean(0)
        centred = points - mean
        self._merge(len(points), mean, centred.T @ centred)

    def add(self, other: Self) -> None:
        """Take in what ``other`` holds."""
        self._merge(other.count, other.mean, other._scatter)

    def _merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        if not total:
            return
        shift = mean - self.mean
        self._scatter = self._scatter + scatter + torch.outer(shift, shift) * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """(F, F) unbiased covariance of at least two samples."""
        return self._scatter / (self.count - 1)


@final
class GroupedMoments:
    """Moments of a row, of all points and without each of ``num_groups`` groups.

    Points are dealt out in turn class by class, so that every group has as much of each class as the row has.
    """

    def __init__(self, dim: int, num_groups: int) -> None:
        self.count = 0
        self._dim = dim
        self._groups = [RunningMoments(dim) for _ in range(num_groups)]
        self._dealt: dict[int, int] = {}

    def update(self, points: Tensor, labels: Tensor | None = None) -> None:
        """Take in points (N, F), of the classes ``labels`` (N,) or all of one."""
        labels = torch.zeros(len(points), dtype=torch.long) if labels is None else labels.cpu()
        group = torch.empty_like(labels)
        for label in torch.unique(labels).tolist():
            own = labels == label
            number, before = int(own.sum()), self._dealt.get(label, label)  # classes begin at different groups
            group[own] = (before + torch.arange(number)) % len(self._groups)
            self._dealt[label] = before + number
        for index, moments in enumerate(self._groups):
            moments.update(points[(group == index).to(points.device)])
        self.count += len(points)

    def whole(self) -> RunningMoments:
        return self._sum(self._groups)

    def standard_error(self, statistic: Callable[[RunningMoments], float]) -> float | None:
        """Of a smooth statistic: the delete-a-group jackknife (Kott 2001), whose groups share the statistic's bias.

        None with one group, or fewer than two points outside one.
        """
        number = len(self._groups)
        left = [self._sum(self._groups[:g] + self._groups[g + 1 :]) for g in range(number)]
        if number < 2 or min(part.count for part in left) < 2:
            return None
        values = torch.tensor([statistic(part) for part in left], dtype=torch.float64)
        return float(((number - 1) / number * (values - values.mean()).square().sum()).sqrt())

    def _sum(self, groups: Sequence[RunningMoments]) -> RunningMoments:
        total = RunningMoments(self._dim)
        for group in groups:
            total.add(group)
        return total


@final
class FrechetEvaluator(DistanceEvaluator[GroupedMoments]):
    """``fd_data``, ``fd_teacher`` and, against stored statistics, ``fd``; with Inception ``fid_data`` and so on.

    The distance is in squared feature units and biased upwards by few samples: compare rows of equal size only.
    On the row ``data`` (training images), ``fd_data`` is the floor that real images themselves reach. ``fd_data_error``
    and so on are standard errors: what other samples of the row, and not other training, would change.
    """

    def __init__(self, config: FrechetConfig) -> None:
        """Raises ``ConfigError`` or ``DownloadError`` when Inception or the stored statistics cannot be had."""
        network = build_features(config)
        self._stored = reference_statistics(config, network.dim)
        self._groups = config.error_groups or (10 if network.dim <= 256 else 1)
        super().__init__(f"f{network.letters}", network)

    def empty(self) -> GroupedMoments:
        return GroupedMoments(self._network.dim, self._groups)

    def update(self, batch: EvaluationBatch) -> None:
        self._row.update(batch_features(self._network, batch), class_labels(batch.condition))

    def measure(self, name: str, reference: GroupedMoments, what: str) -> Mapping[str, float]:
        self._check_count(reference.count, what)
        whole = reference.whole()
        return self._scores(name, whole.mean, whole.covariance)

    def compute(self) -> Mapping[str, float]:
        """Warns when a covariance has fewer samples than dimensions; a side with fewer than two is left out."""
        scores: dict[str, float] = {}
        if self._stored is not None and self._row.count >= 2:
            scores |= self._scores(self._prefix, *self._stored)
        scores |= super().compute()
        if scores:
            self._check_count(self._row.count, f"samples in the row {self._subject!r}")
        return scores

    def _scores(self, name: str, mean: Tensor, covariance: Tensor) -> dict[str, float]:
        def to_reference(row: RunningMoments) -> float:
            return frechet_distance(mean, covariance, row.mean, row.covariance)

        scores, error = {name: to_reference(self._row.whole())}, self._row.standard_error(to_reference)
        return scores if error is None else scores | {name + ERROR: error}

    def _check_count(self, count: int, what: str) -> None:
        if count < self._network.dim:
            warnings.warn(
                f"The Fréchet distance is unreliable: {count} {what} for {self._network.dim} feature "
                "dimensions leave the covariance singular. Take more samples, or the kernel distance.",
                stacklevel=3,
            )


def reference_statistics(options: FrechetConfig, dim: int) -> tuple[Tensor, Tensor] | None:
    """Mean (F,) and covariance (F, F) float64 that ``options.reference_statistics`` names; None when it names none.

    Raises:
        ConfigError: no such file, unreadable, without ``mu`` and ``sigma`` or not of F = ``dim``.
        DownloadError: clean-fid's own statistics are neither in the cache nor to be had.
    """
    name = options.reference_statistics
    if name is None:
        return None
    if name.endswith(".npz"):
        path = Path(name)
    elif PACKAGED.get(name) == options.features:
        path = Path(__file__).with_name("assets") / f"{name}.npz"
    elif Path(name).name != name or options.features != "inception":
        raise ConfigError(
            f"reference_statistics is {name!r} with features {options.features!r}. Expected the path of an .npz file "
            "with mu and sigma; with features: inception, the name of clean-fid's own statistics, such as cifar10; or "
            f"packaged ones: {', '.join(f'{own} with features: {features}' for own, features in PACKAGED.items())}."
        )
    else:
        path = fetch_statistics(name, options.inception_resize, options.reference_split, options.reference_resolution)
    try:
        with np.load(path, allow_pickle=False) as file:
            mean, covariance = (np.asarray(file[key], dtype=np.float64) for key in ("mu", "sigma"))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, AttributeError) as error:
        raise ConfigError(
            f"The reference statistics {path} cannot be read ({error}). Expected an .npz file with the arrays mu, "
            f"({dim},), and sigma, ({dim}, {dim})."
        ) from error
    if mean.shape != (dim,) or covariance.shape != (dim, dim):
        raise ConfigError(
            f"The reference statistics {path} hold mu {mean.shape} and sigma {covariance.shape}, but the features "
            f"chosen have {dim} dimensions. Use statistics made with the same features."
        )
    return torch.from_numpy(mean), torch.from_numpy(covariance)
