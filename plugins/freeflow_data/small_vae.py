"""The small autoencoder as a codec: packaged for MNIST's digits, or trained by the user."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any, Self, final

import torch
from torch import Tensor

from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.interfaces import BuildContext, Codec
from freeflow_core.network_file import check_tensors, load_network
from freeflow_data.config import SmallVAEConfig
from freeflow_data.small_autoencoder import FAMILY, SmallAutoencoder

ASSET = "assets/mnist-vae.safetensors"
"""The packaged weights; the page beside them says how they were made."""


@final
class SmallVAECodec(Codec):
    """x = (E(image) - shift) * scale and back, with a :class:`SmallAutoencoder` of 28x28 grey images or the like.

    Draws of the states have zero mean and unit deviation per channel over the images it was trained on.

    Args:
        network: frozen; moved to ``device``. Results lie where the input lay.
        device: where the network runs.
        batch_size: images that pass through the network at once.
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
        return torch.cat([self._decode(part) for part in torch.split(x, self._batch_size)])

    def _moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(self._device.type, enabled=False):
            mean, log_variance = self._network.encode(images.to(self._device).float() / 127.5 - 1)
        shift, scale = self._network.shift[:, None, None], self._network.scale[:, None, None]
        deviation = (0.5 * log_variance).exp() * scale
        return ((mean - shift) * scale).to(images.device), deviation.to(images.device)

    def _decode(self, x: Tensor) -> Tensor:
        latents = x.to(self._device, torch.float32) / self._network.scale[:, None, None]
        with torch.autocast(self._device.type, enabled=False):
            values = self._network.decode(latents + self._network.shift[:, None, None])
        return values.mul(127.5).add_(128).clamp_(0, 255).to(torch.uint8).to(x.device)


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
    state, _ = load_network(path.expanduser())
    if state.family != FAMILY:
        raise CheckpointError(
            f"{path} holds a network of the family {state.family!r}, expected {FAMILY!r}. Files of that family are "
            "made by `python -m freeflow_data.train_autoencoder`."
        )
    try:
        options: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in state.config.items()}
        network = SmallAutoencoder(**options)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"The autoencoder {path} has a configuration of no use: {error}.") from error
    check_tensors(network.state_dict(), state.tensors, f"autoencoder {path}")
    network.load_state_dict(state.tensors)
    return network.eval().requires_grad_(False)
