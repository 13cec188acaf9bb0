"""Features of small images from a network of our own: packaged, or trained by the user."""

from __future__ import annotations

import hashlib
import importlib.resources
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.network_file import check_tensors, load_network
from freeflow_core.types import NetworkState
from freeflow_metrics.features import FeatureNetwork
from freeflow_metrics.small_network import FAMILY, SmallNetwork

ASSETS = {"digits": "assets/digits-features.safetensors", "mnist": "assets/mnist-features.safetensors"}
"""Packaged networks by name; a page beside each, ``<name>-features.md``, says how it was made."""


@final
class SmallFeatures(FeatureNetwork):
    """A :class:`SmallNetwork` with its weights.

    Args:
        state: as ``python -m freeflow_metrics.train_features`` writes it.
        name: identifies the features: equal names mean equal features.

    Raises:
        CheckpointError: ``state`` does not describe such a network.
    """

    def __init__(self, state: NetworkState, name: str) -> None:
        if state.family != FAMILY:
            raise CheckpointError(
                f"Expected a network of family {FAMILY!r}, got {state.family!r}. Files of that family are made by "
                "`python -m freeflow_metrics.train_features`."
            )
        self.name = name
        try:
            options: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in state.config.items()}
            self._network = SmallNetwork(**options)
        except (TypeError, ValueError, IndexError) as error:
            raise CheckpointError(f"The feature network {name!r} has a configuration of no use: {error}.") from error
        check_tensors(self._network.state_dict(), state.tensors, f"feature network {name!r}")
        self._network.load_state_dict(state.tensors)
        self._network.eval().requires_grad_(False)
        self._device = torch.device("cpu")
        self.dim = self._network.embed.out_features
        self.num_classes = self._network.classify.out_features

    @classmethod
    def packaged(cls, name: str = "digits") -> SmallFeatures:
        """The network that comes with the plugin under ``name``, a key of :data:`ASSETS`."""
        with importlib.resources.as_file(importlib.resources.files("freeflow_metrics") / ASSETS[name]) as path:
            state, _ = load_network(path)
        return cls(state, name)

    @classmethod
    def from_file(cls, path: Path) -> SmallFeatures:
        """A network of the user's own. Raises ``CheckpointError`` for a file that cannot be read or is no such network.

        Its features are named by the file's content, so that evaluators share them where the files are alike.
        """
        state, _ = load_network(path.expanduser())
        return cls(state, f"file:{hashlib.sha256(path.expanduser().read_bytes()).hexdigest()[:16]}")

    def to(self, device: torch.device) -> None:
        self._network.to(device)
        self._device = device

    def features(self, images: Tensor) -> Tensor:
        expected = self._network.image_shape
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != expected:
            others = ", ".join(name for name in (*ASSETS, "inception") if name != self.name)
            raise ConfigError(
                f"The features {self.name!r} are for uint8 images of shape {expected}, but these are "
                f"{images.dtype} of shape {tuple(images.shape[1:])}. Choose other features ({others}), e.g. "
                "features: inception for photographs, or train a network for these images: "
                "`python -m freeflow_metrics.train_features --help`."
            )
        features: Tensor = self._network(images.to(self._device).float() / 127.5 - 1)
        return features

    def logits(self, features: Tensor) -> Tensor:
        return self._network.logits(features.to(self._device, torch.float32))
