"""The transformer as a teacher."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Self, final

import torch
from torch import Tensor

from freeflow_core.config import ComponentConfig
from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.interfaces import BuildContext, Teacher
from freeflow_core.network_file import load_network
from freeflow_core.types import Condition, Draws, NetworkState
from freeflow_transformers.config import DigitsTeacherConfig, SiTTeacherConfig
from freeflow_transformers.network import DiffusionTransformer
from freeflow_transformers.weights import transformer_from_state, transformer_state

DIGITS_ASSET = "assets/digits.safetensors"


@final
class TransformerTeacher(Teacher):
    """The frozen velocity v(x_t, t, c) of a diffusion transformer in this project's convention.

    Args:
        network: a velocity network, frozen here; conditioned on (N,) integer labels, or unconditional.

    Raises:
        ConfigError: the network is a student: it takes a duration or a guidance weight.
    """

    def __init__(self, network: DiffusionTransformer) -> None:
        super().__init__()
        if network.config.jump or network.config.guidance:
            raise ConfigError(
                "This network is a distilled student: it takes a duration or a guidance weight, and answers with an "
                "average velocity. A teacher must be a velocity network, as `freeflow pretrain` writes it."
            )
        self.network = network.requires_grad_(False).eval()
        self.sample_shape = network.config.sample_shape
        self.num_classes = network.config.num_classes or None

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        """Raises ``CheckpointError`` for a file that is missing, damaged, of another kind, or a student's."""
        assert isinstance(config, (SiTTeacherConfig, DigitsTeacherConfig))
        teacher = cls.from_file(config.checkpoint) if config.checkpoint is not None else cls.from_asset(DIGITS_ASSET)
        return teacher.to(context.device)

    @classmethod
    def from_asset(cls, name: str) -> Self:
        """A teacher shipped inside this package. Raises ``CheckpointError`` when it was not installed."""
        resource = importlib.resources.files("freeflow_transformers").joinpath(name)
        if not resource.is_file():
            raise CheckpointError(
                f"The weights freeflow_transformers/{name} are not part of this installation. Install the complete "
                "package again, or train them with `freeflow pretrain --preset digits` and name the file in "
                "teacher.checkpoint."
            )
        with importlib.resources.as_file(resource) as path:
            return cls.from_file(path)

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """A teacher from weights that ``freeflow pretrain`` wrote. Raises ``CheckpointError``."""
        state, _ = load_network(path)
        network = transformer_from_state(state, f"teacher checkpoint {path}")
        try:
            return cls(network)
        except ConfigError as error:
            raise CheckpointError(f"{path} cannot be a teacher. {error}") from None

    def velocity(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        output: Tensor = self.network(x_t, t, condition)
        return output[:, : self.sample_shape[0]]

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
        return transformer_state(self.network)
