"""Teachers made of one diffusion transformer, which predicts a velocity, or the noise."""

import importlib.resources
from pathlib import Path
from typing import Self, final

import torch
from torch import Tensor, nn

from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.interfaces import BuildContext, Teacher
from freeflow_core.math.conversions import Convention, Prediction, ask, velocity_of
from freeflow_core.math.derivative import full_precision
from freeflow_core.math.schedules import DiscreteSchedule
from freeflow_core.network_file import load_network
from freeflow_core.types import Condition, NetworkState
from freeflow_transformers.config import (
    DigitsTeacherConfig,
    DiTTeacherConfig,
    ReleasedTeacherConfig,
    ShippedTeacherConfig,
)
from freeflow_transformers.network import DiffusionTransformer
from freeflow_transformers.released.formats import describe
from freeflow_transformers.released.loading import load_teacher_network
from freeflow_transformers.weights import transformer_from_state, transformer_state

DIGITS_ASSET = DigitsTeacherConfig.asset


class NetworkTeacher(Teacher):
    """Base: a frozen network conditioned on (N,) integer labels, or unconditional.

    Raises ``ConfigError`` for a student's network: it takes a duration or a guidance weight.
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

    def null_condition(self, condition: Condition) -> Condition:
        if not self.network.config.has_null_class:
            raise ConfigError(
                "This teacher was not trained unconditionally beside its classes, so it cannot be guided. Use a "
                "guidance weight of 1, or a teacher trained with label dropout."
            )
        assert isinstance(condition, Tensor)
        return torch.full_like(condition, self.network.config.num_classes)

    def network_state(self) -> NetworkState:
        return transformer_state(self.network)

    @property
    def own_network(self) -> nn.Module:
        return self.network


@final
class TransformerTeacher(NetworkTeacher):
    """The velocity v(x_t, t, c) of a transformer pretrained here, of SiT, or of SiT trained with REPA.

    The network's own time direction and sign (``network.config``) are converted here: v is noise - data at t = 0 data,
    e.g. -f(x_t, 1 - t) of SiT's f (Ma et al. 2024).

    Raises:
        ConfigError: the network is a student, or predicts the noise.
    """

    def __init__(self, network: DiffusionTransformer) -> None:
        super().__init__(network)
        if network.config.prediction != "velocity":
            raise ConfigError("This network predicts the noise, not a velocity. Use it as the teacher `dit`.")

    @classmethod
    def from_config(cls, config: ShippedTeacherConfig | ReleasedTeacherConfig, context: BuildContext) -> Self:
        """Raises ``CheckpointError`` for a file that is missing, damaged, of another kind, or a student's."""
        if isinstance(config, ShippedTeacherConfig):
            own = config.checkpoint
            shipped = cls.from_asset(type(config)) if own is None else cls.from_file(own)
            shipped.codec = config.codec
            return shipped.to(context.device)
        loaded = load_teacher_network(config, context)
        teacher = cls._of(loaded.network, loaded.origin).to(context.device)
        loaded.describe(teacher, teacher.velocity)
        return teacher

    @classmethod
    def from_asset(cls, shipped: type[ShippedTeacherConfig] = DigitsTeacherConfig) -> Self:
        """A teacher inside this package. Raises ``CheckpointError`` when it was not installed."""
        resource = importlib.resources.files("freeflow_transformers").joinpath(shipped.asset)
        if not resource.is_file():
            raise CheckpointError(
                f"The weights freeflow_transformers/{shipped.asset} are not part of this installation. Install the "
                f"complete package again, or train them with `freeflow pretrain --preset {shipped.pretrained_by}` and "
                "name the file in teacher.checkpoint."
            )
        with importlib.resources.as_file(resource) as path:
            return cls.from_file(path)

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """A teacher from weights that ``freeflow pretrain`` wrote. Raises ``CheckpointError``."""
        state, _ = load_network(path)
        teacher = cls._of(transformer_from_state(state, f"teacher checkpoint {path}"), path)
        teacher.provenance = f"transformer from {path} (written by freeflow): {describe(teacher.network.config)}"
        return teacher

    @classmethod
    def _of(cls, network: DiffusionTransformer, origin: Path | None) -> Self:
        try:
            return cls(network)
        except ConfigError as error:
            raise CheckpointError(f"{origin} cannot be a teacher. {error}") from None

    def velocity(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        output = self.network(x_t, self.network.own_time(t), condition)
        return self.network.velocity(output)


@final
class NoiseTeacher(NetworkTeacher):
    """v(x_t, t, c) of a network that predicts the noise e of a discrete schedule (DiT: Peebles & Xie 2022).

    It is asked at the state of the schedule with the signal-to-noise ratio of x_t, and at its fractional step. Euler
    steps of this field between the schedule's own times are DDIM steps (Song et al. 2021, eq. 12 with sigma = 0).

    Beyond the first and the last step (t = 0.0099 and 0.9937 for DiT), which are ``time_range``, the field is continued
    constantly in t. Near the last step 1 / (1 - t) amplifies errors of e up to 158 times, so the network runs in
    float32 at least, without autocast and TF32.

    Raises:
        ConfigError: the network is a student, or predicts a velocity.
    """

    def __init__(self, network: DiffusionTransformer, schedule: DiscreteSchedule) -> None:
        super().__init__(network)
        if network.config.prediction != "noise":
            raise ConfigError("This network predicts a velocity, not the noise. Use it as the teacher `sit`.")
        self.time_range = schedule.time_range
        self.convention = Convention(Prediction.NOISE, schedule=schedule, high=schedule.time_range[1])

    @classmethod
    def from_config(cls, config: DiTTeacherConfig, context: BuildContext) -> Self:
        """Raises ``CheckpointError`` for a file that is missing, damaged or of another family."""
        loaded = load_teacher_network(config, context)
        schedule = DiscreteSchedule.linear(config.diffusion_steps, config.beta_start, config.beta_end)
        teacher = cls(loaded.network, schedule).to(context.device)
        loaded.describe(teacher, teacher.noise)
        return teacher

    def velocity(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        x = x_t.to(torch.promote_types(x_t.dtype, torch.float32))
        held = t.double().clamp(*self.time_range)
        return velocity_of(self.convention, self.noise(x, t, condition), x, held).to(x_t.dtype)

    def noise(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """e (N, C, H, W) for states ``x_t`` of the linear path at ``t`` (N,)."""
        question = ask(self.convention, x_t, t)
        with full_precision(x_t):
            output: Tensor = self.network(question.x, question.time, condition)
        return output[:, : self.sample_shape[0]]
