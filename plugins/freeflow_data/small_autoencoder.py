"""A small convolutional autoencoder of grey images, with a Gaussian of latents per image."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

FAMILY = "freeflow_data.small_autoencoder"
FACTOR = 4
"""Pixels of a side to one latent."""
_MULTIPLE = 8
"""Sides are padded to multiples of it, so that latents have even sides, which patches of two tile."""
_LOG_VARIANCE_RANGE = (-12.0, 4.0)
"""Posterior deviations between 0.0025 and 7.4: nothing trained comes near, a wild start stays finite."""


@final
class SmallAutoencoder(nn.Module):
    """KL autoencoder (Kingma & Welling 2013, arXiv 1312.6114; as Rombach et al. 2022, use it).

    Images (N, C, H, W) in [-1, 1] are padded with background, -1, to sides that 8 divides; latents have a quarter of
    these sides. Strides instead of pooling, SiLU, no normalisation: residual branches begin at zero.

    Attributes:
        latent_shape: (c, h, w) of the latents.
        shift, scale: (c,) buffers; (latent - shift) * scale has zero mean and unit deviation per channel over the
            training images. 0 and 1 until training ends.

    Args:
        image_shape: (C, H, W) of the images.
        latent_channels: channels of a latent.
        widths: channels at a half and at a quarter of the resolution.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        latent_channels: int = 4,
        widths: tuple[int, int] = (32, 64),
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        outer, inner = widths
        self.image_shape = image_shape
        self.config = {"image_shape": list(image_shape), "latent_channels": latent_channels, "widths": list(widths)}
        padded_height, padded_width = (side + -side % _MULTIPLE for side in (height, width))
        self.latent_shape = (latent_channels, padded_height // FACTOR, padded_width // FACTOR)
        top, left = (padded_height - height) // 2, (padded_width - width) // 2
        self._padding = (left, padded_width - width - left, top, padded_height - height - top)
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * channels, outer, 3, padding=1),
            ResidualBlock(outer),
            nn.Conv2d(outer, inner, 3, stride=2, padding=1),
            ResidualBlock(inner),
            nn.SiLU(),
            nn.Conv2d(inner, 2 * latent_channels, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, inner, 3, padding=1),
            ResidualBlock(inner),
            nn.Conv2d(inner, 4 * outer, 3, padding=1),
            nn.PixelShuffle(2),
            ResidualBlock(outer),
            nn.SiLU(),
            nn.Conv2d(outer, 4 * channels, 3, padding=1),
            nn.PixelShuffle(2),
        )
        self.register_buffer("shift", torch.zeros(latent_channels))
        self.register_buffer("scale", torch.ones(latent_channels))

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance (N, c, h, w) of the unscaled latents of images in [-1, 1]."""
        mean, log_variance = self.encoder(functional.pad(images, self._padding, value=-1.0)).chunk(2, 1)
        return mean, log_variance.clamp(*_LOG_VARIANCE_RANGE)

    def decode(self, latents: Tensor) -> Tensor:
        """Images (N, C, H, W), roughly in [-1, 1], of unscaled latents."""
        left, _, top, _ = self._padding
        _, height, width = self.image_shape
        images: Tensor = self.decoder(latents)
        return images[:, :, top : top + height, left : left + width]


@final
class ResidualBlock(nn.Module):
    """x + f(x) for feature maps (N, width, h, w), f two 3x3 convolutions of which the second begins at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        assert self.conv2.bias is not None
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv2(functional.silu(self.conv1(functional.silu(x))))
        return out
