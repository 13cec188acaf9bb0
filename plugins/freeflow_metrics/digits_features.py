"""Features of 8x8 digits from the packaged network."""

from __future__ import annotations

import importlib.resources
from typing import final

import torch
from torch import Tensor

from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.network_file import check_tensors, load_network
from freeflow_core.types import NetworkState
from freeflow_metrics.digits_network import FAMILY, DigitsNetwork
from freeflow_metrics.features import FeatureNetwork

ASSET = "assets/digits-features.safetensors"


@final
class DigitsFeatures(FeatureNetwork):
    """The packaged network for 8x8 digits; ``assets/digits-features.md`` says how it was made.

    Raises:
        CheckpointError: ``state`` does not describe a digits network.
    """

    name = "digits"

    def __init__(self, state: NetworkState) -> None:
        if state.family != FAMILY:
            raise CheckpointError(f"Expected a network of family {FAMILY!r}, got {state.family!r}.")
        config = dict(state.config)
        self._network = DigitsNetwork(config["dim"], config["num_classes"], tuple(config["widths"]))
        check_tensors(self._network.state_dict(), state.tensors, "digits feature network")
        self._network.load_state_dict(state.tensors)
        self._network.eval().requires_grad_(False)
        self._device = torch.device("cpu")
        self.dim = config["dim"]
        self.num_classes = config["num_classes"]

    @classmethod
    def packaged(cls) -> DigitsFeatures:
        """The network that comes with the plugin."""
        with importlib.resources.as_file(importlib.resources.files("freeflow_metrics") / ASSET) as path:
            state, _ = load_network(path)
        return cls(state)

    def to(self, device: torch.device) -> None:
        self._network.to(device)
        self._device = device

    def features(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != DigitsNetwork.image_shape:
            raise ConfigError(
                f"The features 'digits' are for uint8 images of shape {DigitsNetwork.image_shape}, but these are "
                f"{images.dtype} of shape {tuple(images.shape[1:])}. Choose features: inception for other images."
            )
        features: Tensor = self._network(images.to(self._device).float() / 127.5 - 1)
        return features

    def logits(self, features: Tensor) -> Tensor:
        return self._network.logits(features.to(self._device, torch.float32))
