"""A perceptual distance on whatever network turns images into features."""

from typing import Self, final

import torch
from torch import Tensor

from freeflow_core.interfaces import BuildContext, Distance
from freeflow_metrics.config import PerceptualConfig
from freeflow_metrics.features import FeatureNetwork, build_features


@final
class PerceptualDistance(Distance):
    """sum_l mean_hw || y_l - y'_l ||^2, y_l the activations of layer l, of unit length over channels.

    LPIPS (Zhang et al. 2018, eq. 1) without its learned weights of channels, on features trained for these images.
    """

    def __init__(self, network: FeatureNetwork) -> None:
        self._network = network

    @classmethod
    def from_config(cls, config: PerceptualConfig, context: BuildContext) -> Self:
        network = build_features(config)
        network.to(context.device)
        return cls(network)

    def between(self, images: Tensor, others: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            layers = self._network.layers(torch.cat([images, others]).float())
        total = images.new_zeros(len(images), dtype=torch.float32)
        for layer in layers:
            first, second = torch.nn.functional.normalize(layer, dim=1, eps=1e-6).chunk(2)
            total = total + (first - second).square().sum(1).flatten(1).mean(1)
        return total
