"""A small convolutional autoencoder of grey images as a codec: packaged for MNIST's digits, or trained by the user."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Self, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.interfaces import BuildContext, Codec
from freeflow_core.network_file import build_network, load_network
from freeflow_core.types import PortableNetwork
from freeflow_data.config import SmallVAEConfig

FAMILY = "freeflow_data.small_autoencoder"
ASSET = "assets/mnist-vae.safetensors"
"""The packaged weights; the page beside them says how they were made."""
_FACTOR = 4  # pixels of a side to one latent
_MULTIPLE = 8  # sides are padded to multiples of it, so that latents have even sides, which patches of two tile
_LOG_VARIANCE_RANGE = (-12.0, 4.0)
"""Posterior deviations between 0.0025 and 7.4: nothing trained comes near, a wild start stays finite."""


@final
class SmallVAECodec(Codec):
    """x = (E(image) - shift) * scale and back, with a :class:`SmallAutoencoder` of 28x28 grey images or the like.

    Draws of the states have zero mean and unit deviation per channel over the images it was trained on.

    Results lie where the input lay; ``batch_size`` images pass through the network at once.
    """

    def __init__(self, network: SmallAutoencoder, device: torch.device, batch_size: int = 256) -> None:
        self._network = network.to(device).eval().requires_grad_(False)
        self._device = device
        self._batch_size = batch_size

    @classmethod
    def from_config(cls, config: SmallVAEConfig, context: BuildContext) -> Self:
        """Raises ``CheckpointError`` for weights that are missing, damaged or of another network."""
        network = packaged_autoencoder() if config.checkpoint is None else load_autoencoder(config.checkpoint)
        return cls(network, context.device, config.batch_size)

    def encode(self, images: Tensor) -> Tensor:
        """The mean of each image's states, float32 (N, c, h, w), (4, 8, 8) for images of 28x28; see :meth:`moments`."""
        return self.moments(images)[0]

    @torch.no_grad()
    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the states of uint8 images (N, C, H, W).

        Raises ``ConfigError`` for images of another type or shape than the network's.
        """
        expected = self._network.image_shape
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != expected:
            raise ConfigError(
                f"The codec small-vae encodes uint8 images of shape {expected}, got {images.dtype} "
                f"{tuple(images.shape)}. Train one for these images, `python -m freeflow_data.train_autoencoder "
                "--help`, or choose the codec pixels."
            )
        means, deviations = zip(*map(self._moments, torch.split(images, self._batch_size)), strict=True)
        return torch.cat(means), torch.cat(deviations)

    def state_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, ...] | None:
        return self._network.latent_shape if tuple(image_shape) == self._network.image_shape else None

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """uint8 images (N, C, H, W) of states of any floating type; [-1, 1] becomes trunc(127.5 v + 128), clamped.

        Raises ``ConfigError`` for states of another shape.
        """
        if not x.is_floating_point() or tuple(x.shape[1:]) != self._network.latent_shape:
            raise ConfigError(
                f"The codec small-vae decodes latents of shape {self._network.latent_shape}, got {x.dtype} "
                f"{tuple(x.shape)}. A model that works on pixels needs the codec pixels."
            )
        values = torch.cat([self._decode(part) for part in torch.split(x, self._batch_size)])
        return values.mul_(127.5).add_(128).clamp_(0, 255).to(torch.uint8)

    def decode_with_gradient(self, x: Tensor) -> Tensor:
        return self._decode(x)

    def portable(self) -> PortableNetwork:
        kept = ("decoder.", "shift", "scale")
        tensors = {name: tensor for name, tensor in self._network.state_dict().items() if name.startswith(kept)}
        code = Path(__file__).parent / "portable" / "freeflow_decoder.py"
        return PortableNetwork("FreeFlowDecoder", {**self._network.config, "multiple": _MULTIPLE}, tensors, code)

    def _moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(self._device.type, enabled=False):
            mean, log_variance = self._network.encode(images.to(self._device).float() / 127.5 - 1)
        shift, scale = self._network.shift[:, None, None], self._network.scale[:, None, None]
        deviation = (0.5 * log_variance).exp() * scale
        return ((mean - shift) * scale).to(images.device), deviation.to(images.device)

    def _decode(self, x: Tensor) -> Tensor:
        latents = x.to(self._device, torch.float32) / self._network.scale[:, None, None]
        with torch.autocast(self._device.type, enabled=False):
            return self._network.decode(latents + self._network.shift[:, None, None]).to(x.device)


def packaged_autoencoder() -> SmallAutoencoder:
    """The autoencoder of MNIST's digits. Raises ``CheckpointError`` when it was not installed."""
    resource = importlib.resources.files("freeflow_data").joinpath(ASSET)
    if not resource.is_file():
        raise CheckpointError(
            f"The weights freeflow_data/{ASSET} are not part of this installation. Install the complete package "
            "again, or train them with `python -m freeflow_data.train_autoencoder` and name the file in "
            "codec.checkpoint."
        )
    with importlib.resources.as_file(resource) as path:
        return load_autoencoder(path)


def load_autoencoder(path: Path) -> SmallAutoencoder:
    """A network that ``python -m freeflow_data.train_autoencoder`` wrote, frozen.

    Raises ``CheckpointError`` for a file that is missing, damaged or holds another network.
    """
    network = build_network(SmallAutoencoder, load_network(path.expanduser())[0], FAMILY, f"autoencoder {path}")
    return network.eval().requires_grad_(False)


@final
class SmallAutoencoder(nn.Module):
    """KL autoencoder (Kingma & Welling 2013, arXiv 1312.6114; as Rombach et al. 2022, use it).

    Images (N, C, H, W) in [-1, 1] are padded with background, -1, to sides that 8 divides; latents have a quarter of
    these sides. Strides instead of pooling, SiLU, no normalisation: residual branches begin at zero.

    Attributes:
        latent_shape: (c, h, w) of the latents.
        shift, scale: (c,) buffers; (latent - shift) * scale has zero mean and unit deviation per channel over the
            training images. 0 and 1 until training ends.

    ``widths`` are channels at a half and at a quarter of the resolution.
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
        self.latent_shape = (latent_channels, padded_height // _FACTOR, padded_width // _FACTOR)
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
