"""The small network behind the packaged digits features."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn
from torch.nn import functional

FAMILY = "freeflow_metrics.digits_features"


@final
class DigitsNetwork(nn.Module):
    """Convolutional classifier of 8x8 digits whose last hidden layer, before its non-linearity, is the feature.

    Strides instead of pooling and GELU throughout, so features are smooth in the pixels; taken before the
    non-linearity they are close to Gaussian, which is what the Fréchet distance assumes.

    Args:
        dim: number of features.
        num_classes: classes.
        widths: channels of the three convolutions.
    """

    image_shape = (1, 8, 8)

    def __init__(self, dim: int = 48, num_classes: int = 10, widths: tuple[int, int, int] = (24, 32, 48)) -> None:
        super().__init__()
        first, second, third = widths
        self.config = {"dim": dim, "num_classes": num_classes, "widths": list(widths)}
        self.conv1 = nn.Conv2d(1, first, 3, padding=1)
        self.conv2 = nn.Conv2d(first, second, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(second, third, 3, stride=2, padding=1)
        self.embed = nn.Linear(third * 4, dim)
        self.classify = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, dim) of images (N, 1, 8, 8) in [-1, 1]."""
        for layer in (self.conv1, self.conv2, self.conv3):
            x = functional.gelu(layer(x))
        features: Tensor = self.embed(x.flatten(1))
        return features

    def logits(self, features: Tensor) -> Tensor:
        """(N, num_classes) logits of features (N, dim)."""
        logits: Tensor = self.classify(functional.gelu(features))
        return logits
