"""The decoder of a small convolutional autoencoder, as diffusers loads it: torch and diffusers, without freeflow."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn.functional import silu


class FreeFlowDecoder(ModelMixin, ConfigMixin):
    """Latents (N, c, h, w) to images (N, C, H, W), roughly in [-1, 1]. Arguments are those of ``config.json``."""

    @register_to_config
    def __init__(
        self, image_shape: list[int], latent_channels: int = 4, widths: tuple[int, int] = (32, 64), multiple: int = 8
    ) -> None:
        super().__init__()
        channels, self._height, self._width = image_shape
        self._top, self._left = (-self._height % multiple) // 2, (-self._width % multiple) // 2
        outer, inner = widths
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

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """Images, in a tuple as diffusers' autoencoders give them without ``return_dict``."""
        latents = latents.to(self.scale.dtype) / self.scale[:, None, None] + self.shift[:, None, None]
        images = self.decoder(latents)
        return (images[:, :, self._top : self._top + self._height, self._left : self._left + self._width],)


class ResidualBlock(nn.Module):
    """x + f(x), f two convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(silu(self.conv1(silu(x))))
