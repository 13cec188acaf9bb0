"""What turns images into features, and how evaluators of one batch share them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from freeflow_core.interfaces import EvaluationBatch


class FeatureNetwork(ABC):
    """A frozen network from images to features.

    Attributes:
        name: identifies the features: equal names mean equal features.
        dim: number of features F.
        num_classes: classes of its classifier, or None without one.
    """

    name: str
    dim: int
    num_classes: int | None = None

    @abstractmethod
    def to(self, device: torch.device) -> None:
        """Move the network."""

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """(N, F) features of uint8 images (N, C, H, W), on the network's device.

        Raises ``ConfigError`` for images the network was not made for.
        """

    def logits(self, features: Tensor) -> Tensor | None:
        """(N, num_classes) logits from features (N, F), or None without a classifier."""
        return None


@torch.no_grad()
def batch_features(network: FeatureNetwork, batch: EvaluationBatch) -> Tensor:
    """(N, F) float64 features on the host, computed once per batch for all evaluators with this network."""
    features: Tensor = batch.memo(
        f"freeflow_metrics.features:{network.name}", lambda: network.features(batch.images).cpu().double()
    )
    return features


@torch.no_grad()
def image_features(network: FeatureNetwork, images: Tensor, chunk: int = 250) -> Iterator[Tensor]:
    """(n, F) float64 features on the host of uint8 ``images`` (M, C, H, W), at most ``chunk`` at a time."""
    for part in torch.split(images, chunk):
        yield network.features(part).cpu().double()
