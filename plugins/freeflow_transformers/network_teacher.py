"""What all teachers made of one diffusion transformer share."""

from __future__ import annotations

import torch
from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import Teacher
from freeflow_core.types import Condition, Draws, NetworkState
from freeflow_transformers.network import DiffusionTransformer
from freeflow_transformers.weights import transformer_state


class NetworkTeacher(Teacher):
    """Base: a frozen network conditioned on (N,) integer labels, or unconditional. Subclasses give its velocity.

    Args:
        network: without duration and guidance inputs; frozen here.
        guidance_channels: guidance applies to the first that many channels; None: to all.
        provenance: where the network comes from, in words.

    Raises:
        ConfigError: the network is a student: it takes a duration or a guidance weight.
    """

    def __init__(
        self, network: DiffusionTransformer, *, guidance_channels: int | None = None, provenance: str = ""
    ) -> None:
        super().__init__()
        if network.config.jump or network.config.guidance:
            raise ConfigError(
                "This network is a distilled student: it takes a duration or a guidance weight, and answers with an "
                "average velocity. A teacher must be a velocity network, as `freeflow pretrain` writes it."
            )
        self.network = network.requires_grad_(False).eval()
        self.sample_shape = network.config.sample_shape
        self.num_classes = network.config.num_classes or None
        self.guidance_channels = guidance_channels
        self.provenance = provenance

    def null_condition(self, condition: Condition) -> Condition:
        if not self.network.config.has_null_class:
            raise ConfigError(
                "This teacher was not trained unconditionally beside its classes, so it cannot be guided. Use a "
                "guidance weight of 1, or a teacher trained with label dropout."
            )
        assert isinstance(condition, Tensor)
        return torch.full_like(condition, self.network.config.num_classes)

    def sample_condition(self, draws: Draws) -> Condition:
        """Labels (N,) on the host, every class equally likely; None when unconditional."""
        return None if self.num_classes is None else draws.integers("label", self.num_classes)

    def balanced_condition(self, index: Tensor) -> Condition:
        return None if self.num_classes is None else index % self.num_classes

    def network_state(self) -> NetworkState:
        """The network with its convention; a student that starts from it takes both over."""
        return transformer_state(self.network)
