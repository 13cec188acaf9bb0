"""Transformers that predict a velocity, as teachers."""

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
from freeflow_transformers.config import DigitsTeacherConfig, ReleasedTeacherConfig
from freeflow_transformers.network import DiffusionTransformer
from freeflow_transformers.released.detection import describe
from freeflow_transformers.released.loading import load_teacher_network
from freeflow_transformers.released.probe import judge_alignment, noise_alignment
from freeflow_transformers.weights import transformer_from_state, transformer_state

DIGITS_ASSET = "assets/digits.safetensors"


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


@final
class TransformerTeacher(NetworkTeacher):
    """The velocity v(x_t, t, c) of a transformer pretrained here, of SiT, or of SiT trained with REPA.

    The network's own time direction and sign (``network.config``) are converted here: v is noise - data at t = 0 data,
    e.g. -f(x_t, 1 - t) of SiT's f (Ma et al. 2024, arXiv 2401.08740).

    Args:
        network, guidance_channels, provenance: see :class:`NetworkTeacher`.

    Raises:
        ConfigError: the network is a student, or predicts the noise.
    """

    def __init__(
        self, network: DiffusionTransformer, *, guidance_channels: int | None = None, provenance: str = ""
    ) -> None:
        super().__init__(network, guidance_channels=guidance_channels, provenance=provenance)
        if network.config.prediction != "velocity":
            raise ConfigError("This network predicts the noise, not a velocity. Use it as the teacher `dit`.")

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        """Raises ``CheckpointError`` for a file that is missing, damaged, of another kind, or a student's."""
        if isinstance(config, DigitsTeacherConfig):
            path = config.checkpoint
            return (cls.from_asset(DIGITS_ASSET) if path is None else cls.from_file(path)).to(context.device)
        assert isinstance(config, ReleasedTeacherConfig)
        loaded = load_teacher_network(config, context)
        try:
            teacher = cls(loaded.network, guidance_channels=loaded.guidance_channels, provenance=loaded.provenance)
        except ConfigError as error:
            raise CheckpointError(f"{loaded.origin} cannot be a teacher. {error}") from None
        teacher = teacher.to(context.device)
        teacher.codec = loaded.codec
        if loaded.is_published:
            noise = torch.ones(2, dtype=torch.float64)
            alignment = noise_alignment(
                lambda z, labels: teacher.velocity(z, noise, labels),
                teacher.sample_shape,
                teacher.num_classes,
                context.device,
            )
            convention = f"time {loaded.network.config.time_direction}, velocity {loaded.network.config.sign}"
            teacher.provenance += f"; {judge_alignment(alignment, str(loaded.origin), convention)}"
        return teacher

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
            return cls(network, provenance=f"transformer from {path} (written by freeflow): {describe(network.config)}")
        except ConfigError as error:
            raise CheckpointError(f"{path} cannot be a teacher. {error}") from None

    def velocity(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        output = self.network(x_t, self.network.own_time(t), condition)
        return self.network.velocity(output)
