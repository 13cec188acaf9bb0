"""The small networks behind the packaged features."""

from __future__ import annotations

import math
from typing import final

from torch import Tensor, nn
from torch.nn import functional

FAMILY = "freeflow_metrics.small_features"


@final
class SmallNetwork(nn.Module):
    """Convolutional classifier of small images whose last hidden layer, before its non-linearity, is the feature.

    Strides instead of pooling and GELU throughout, so features are smooth in the pixels; taken before the
    non-linearity they are close to Gaussian, which is what the Fréchet distance assumes.

    Args:
        image_shape: (C, H, W) of the images.
        dim: number of features.
        num_classes: classes.
        widths: channels of the three convolutions.
        strides: of the three convolutions.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 8, 8),
        dim: int = 48,
        num_classes: int = 10,
        widths: tuple[int, int, int] = (24, 32, 48),
        strides: tuple[int, int, int] = (1, 2, 2),
    ) -> None:
        super().__init__()
        self.image_shape = image_shape
        channels, *sides = image_shape
        for stride in strides:
            sides = [math.ceil(side / stride) for side in sides]
        first, second, third = widths
        self.config = {
            "image_shape": list(image_shape),
            "dim": dim,
            "num_classes": num_classes,
            "widths": list(widths),
            "strides": list(strides),
        }
        self.conv1 = nn.Conv2d(channels, first, 3, strides[0], padding=1)
        self.conv2 = nn.Conv2d(first, second, 3, strides[1], padding=1)
        self.conv3 = nn.Conv2d(second, third, 3, strides[2], padding=1)
        self.embed = nn.Linear(third * math.prod(sides), dim)
        self.classify = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, dim) of images (N, C, H, W) in [-1, 1]."""
        for layer in (self.conv1, self.conv2, self.conv3):
            x = functional.gelu(layer(x))
        features: Tensor = self.embed(x.flatten(1))
        return features

    def logits(self, features: Tensor) -> Tensor:
        """(N, num_classes) logits of features (N, dim)."""
        logits: Tensor = self.classify(functional.gelu(features))
        return logits
