"""The transformer as a student: a flow map, or a velocity field to become a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self, TypeAlias, final

import torch
from torch import Tensor

from freeflow_core.config import ComponentConfig
from freeflow_core.errors import CheckpointError
from freeflow_core.interfaces import AverageVelocityStudent, BuildContext, StartTimes, Teacher
from freeflow_core.math.flow import average_velocity_jump
from freeflow_core.types import Condition, LoadReport, NetworkState
from freeflow_transformers.architecture import TransformerConfig
from freeflow_transformers.config import FlowMapTransformerConfig, ReleasedStudentConfig, VelocityTransformerConfig
from freeflow_transformers.network import DiffusionTransformer
from freeflow_transformers.released.export import export_released
from freeflow_transformers.released.families import LATENT_CODEC
from freeflow_transformers.released.probe import judge_alignment, noise_alignment
from freeflow_transformers.released.students import load_student_network
from freeflow_transformers.sizing import student_architecture
from freeflow_transformers.weights import take_weights, transformer_from_state, transformer_state

Weights: TypeAlias = Literal["teacher", "random", "file"]
"""Where a student's weights come from: ``load_teacher`` copies the teacher's only for the first."""


@final
class FlowMapTransformer(AverageVelocityStudent):
    """u(x_t, t, s, c, w): the transformer with the duration d = t - s, and by default the guidance weight w, as inputs.

    Both enter their sinusoidal embedding as they are: d lies in [0, 1] like t, and weights of 1 to 8 span one radian to
    eight of the highest frequency, neither flat nor aliased. A weight of None means 1. Without the guidance input
    weights are ignored: the student knows only the one it was trained at.

    Args:
        network: with the duration as an input.
        weights: what the network holds: see :data:`Weights`.
        provenance: where published weights come from, in words.
    """

    def __init__(self, network: DiffusionTransformer, *, weights: Weights = "teacher", provenance: str = "") -> None:
        super().__init__()
        if not network.config.jump:
            raise ValueError("a flow map needs a network with the duration as an input (config.jump)")
        self.network = network
        self.sample_shape = network.config.sample_shape
        self.num_classes = network.config.num_classes or None
        self._weights = weights
        self.provenance = provenance

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        """Options of ``transformer``, or of a published student. Raises ``ConfigError`` and ``CheckpointError``."""
        if isinstance(config, ReleasedStudentConfig):
            return cls._published(config, context)
        assert isinstance(config, FlowMapTransformerConfig)
        architecture = student_architecture(config, context, num_classes=None, jump=True, guidance=config.guidance)
        return cls(_network(architecture, context), weights=config.initialise)

    @classmethod
    def _published(cls, config: ReleasedStudentConfig, context: BuildContext) -> Self:
        loaded = load_student_network(config, context)
        student = cls(loaded.network, weights="file").to(context.device)
        student.start_times = StartTimes.PRIOR
        student.provenance = loaded.provenance
        student.codec = LATENT_CODEC
        if context.device.type != "meta":
            now = torch.ones(2, dtype=torch.float64)
            alignment = noise_alignment(
                lambda z, labels: student.average_velocity(student(z, now, now, labels, None), z, now, now),
                student.sample_shape,
                student.num_classes,
                context.device,
            )
            convention = f"time {student.network.config.time_direction}, velocity {student.network.config.sign}"
            student.provenance += f"; {judge_alignment(alignment, loaded.provenance.split(':')[0], convention)}"
        return student

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Tensor | None) -> Tensor:
        if t.device != s.device:
            t, s = (time.to(x_t.device, torch.promote_types(x_t.dtype, torch.float32)) for time in (t, s))
        if not self.network.config.guidance:
            guidance = None
        elif guidance is None:
            guidance = torch.ones_like(t)
        return self.network(x_t, self.network.own_time(t), condition, t - s, guidance)

    def average_velocity(self, output: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return self.network.velocity(output)

    def jump(self, output: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return average_velocity_jump(x_t, self.average_velocity(output, x_t, t, s), t, s)

    def load_teacher(self, teacher: Teacher) -> LoadReport:
        """Raises ``ConfigError``, listing the differences, for a teacher whose weights do not fit."""
        return _load(self.network, teacher, self._weights)

    def enable_activation_checkpointing(self) -> None:
        self.network.checkpoint_activations = True

    def network_state(self) -> NetworkState:
        return transformer_state(self.network)

    def export(self, path: Path) -> str:
        """Write the published format, ``.safetensors`` or ``.pt``; what was written, in words.

        Raises ``ConfigError`` for a network or suffix it cannot hold, ``CheckpointError`` when writing fails.
        """
        return export_released(self.network_state(), path)

    @classmethod
    def from_state(cls, state: NetworkState) -> Self:
        network = transformer_from_state(state, "student checkpoint")
        if not network.config.jump:
            raise CheckpointError(
                "The checkpoint holds a velocity network, which cannot jump; expected a distilled student. Use it as a "
                "teacher (`sit`), or load it as the student `velocity-transformer`."
            )
        return cls(network)


@final
class VelocityTransformer(AverageVelocityStudent):
    """v(x_t, t, c): the transformer alone, to be trained into a teacher. It ignores s and guidance.

    Its u(x_t, t, s) is v(x_t, t) for every s, so its jump is one Euler step. The null class is row ``num_classes``;
    dropping labels to it is the objective's business. An unconditional one ignores labels.

    Args:
        network: without duration and guidance inputs.
        weights: what the network holds: see :data:`Weights`.
    """

    def __init__(self, network: DiffusionTransformer, *, weights: Weights = "teacher") -> None:
        super().__init__()
        if network.config.jump or network.config.guidance:
            raise ValueError("a velocity field takes neither a duration nor a guidance weight")
        self.network = network
        self.sample_shape = network.config.sample_shape
        self.num_classes = network.config.num_classes or None
        self._weights = weights

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        assert isinstance(config, VelocityTransformerConfig)
        architecture = student_architecture(config, context, num_classes=config.num_classes, jump=False, guidance=False)
        return cls(_network(architecture, context), weights=config.initialise)

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Tensor | None) -> Tensor:
        labels = condition if self.num_classes is not None else None
        return self.network(x_t, self.network.own_time(t), labels)

    def average_velocity(self, output: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return self.network.velocity(output)

    def jump(self, output: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return average_velocity_jump(x_t, self.average_velocity(output, x_t, t, s), t, s)

    def load_teacher(self, teacher: Teacher) -> LoadReport:
        """Raises ``ConfigError``, listing the differences, for a teacher whose weights do not fit."""
        return _load(self.network, teacher, self._weights)

    def enable_activation_checkpointing(self) -> None:
        self.network.checkpoint_activations = True

    def network_state(self) -> NetworkState:
        return transformer_state(self.network)

    def export(self, path: Path) -> str:
        """Write the published format, ``.safetensors`` or ``.pt``; what was written, in words.

        Raises ``ConfigError`` for a network or suffix it cannot hold, ``CheckpointError`` when writing fails.
        """
        return export_released(self.network_state(), path)

    @classmethod
    def from_state(cls, state: NetworkState) -> Self:
        network = transformer_from_state(state, "velocity checkpoint")
        if network.config.jump or network.config.guidance:
            raise CheckpointError(
                "The checkpoint holds a distilled student, whose output is an average velocity; expected a velocity "
                "network. Load it as the student `transformer`."
            )
        return cls(network)


def _network(architecture: TransformerConfig, context: BuildContext) -> DiffusionTransformer:
    """Fresh weights, drawn on the host whatever the device; shapes alone where the run is only planned."""
    if context.device.type == "meta":
        return DiffusionTransformer(architecture, device="meta")
    return DiffusionTransformer(architecture, torch.Generator().manual_seed(context.seed))


def _load(network: DiffusionTransformer, teacher: Teacher, weights: Weights) -> LoadReport:
    if weights == "teacher":
        return take_weights(network, teacher)
    state = teacher.network_state()
    new = tuple(network.state_dict()) if weights == "random" else ()
    return LoadReport(new=new, left=() if state is None else tuple(state.tensors))
