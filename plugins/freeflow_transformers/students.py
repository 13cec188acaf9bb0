"""The transformer as a student: a flow map, or a velocity field to become a teacher; and the size it gets."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias, final

import torch
from torch import Tensor

from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.interfaces import AverageVelocityStudent, BuildContext, StartTimes, Teacher
from freeflow_core.types import Condition, LoadReport, NetworkState, PortableNetwork
from freeflow_transformers.architecture import SIZES, TransformerConfig
from freeflow_transformers.config import (
    FlowMapTransformerConfig,
    ReleasedStudentConfig,
    TransformerOptions,
    VelocityTransformerConfig,
)
from freeflow_transformers.network import DiffusionTransformer
from freeflow_transformers.released.formats import export_released
from freeflow_transformers.released.loading import load_student_network
from freeflow_transformers.weights import (
    refuse_noise_prediction,
    take_weights,
    teacher_architecture,
    transformer_from_state,
    transformer_state,
)

Weights: TypeAlias = Literal["teacher", "random", "file"]
"""Where a student's weights come from: ``load_teacher`` copies the teacher's only for the first."""

_DEFAULTS = {"depth": 4, "width": 128, "num_heads": 4}
"""A million parameters: trains on a CPU."""
_MAX_DEFAULT_TOKENS = 256
_OWN_CONVENTION = {
    name: TransformerConfig.model_fields[name].default for name in ("time_direction", "sign", "prediction")
}
_BACKBONE = ("depth", "width", "num_heads", "patch_size", "mlp_ratio", "qk_norm")


class TransformerStudent(AverageVelocityStudent):
    """Base: a transformer whose output is a velocity in its own convention."""

    def __init__(self, network: DiffusionTransformer, *, weights: Weights = "teacher") -> None:
        super().__init__()
        self.check(network.config)
        self.network = network
        self.sample_shape = network.config.sample_shape
        self.num_classes = network.config.num_classes or None
        self._weights = weights

    @abstractmethod
    def check(self, architecture: TransformerConfig) -> None:
        """Raise ``ConfigError`` for a network that lacks an input of this student, or has one too many."""

    def average_velocity(self, output: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return self.network.velocity(output)

    def load_teacher(self, teacher: Teacher) -> LoadReport:
        """Raises ``ConfigError``, listing the differences, for a teacher whose weights do not fit."""
        if self._weights == "teacher":
            return take_weights(self.network, teacher)
        return nothing_taken(teacher, self.network.state_dict() if self._weights == "random" else {})

    def enable_activation_checkpointing(self) -> None:
        self.network.checkpoint_activations = True

    def network_state(self) -> NetworkState:
        return transformer_state(self.network)

    @classmethod
    def from_state(cls, state: NetworkState) -> Self:
        network = transformer_from_state(state, "student checkpoint")
        try:
            return cls(network)
        except ConfigError as error:
            raise CheckpointError(f"The checkpoint holds another kind of network. {error}") from None

    def export(self, path: Path) -> str:
        return export_released(self.network_state(), path)


@final
class FlowMapTransformer(TransformerStudent):
    """u(x_t, t, s, c, w): the transformer with the duration d = t - s, and by default the guidance weight w, as inputs.

    A weight of None means 1. Without the guidance input weights are ignored: the student knows only the one it was
    trained at.
    """

    def check(self, architecture: TransformerConfig) -> None:
        if not architecture.jump:
            raise ConfigError(
                "This is a velocity network, which cannot jump: it lacks the duration as an input (config.jump). Use "
                "it as a teacher (`sit`), or load it as the student `velocity-transformer`."
            )

    @classmethod
    def from_config(cls, config: FlowMapTransformerConfig | ReleasedStudentConfig, context: BuildContext) -> Self:
        """Options of ``transformer``, or of a published student. Raises ``ConfigError`` and ``CheckpointError``."""
        if isinstance(config, FlowMapTransformerConfig):
            architecture = student_architecture(config, context, num_classes=None, jump=True, guidance=config.guidance)
            return cls(fresh_network(architecture, context), weights=config.initialise)
        loaded = load_student_network(config, context)
        student = cls(loaded.network, weights="file").to(context.device)
        student.start_times = StartTimes.PRIOR
        loaded.describe(student, lambda z, t, c: student.average_velocity(student(z, t, t, c, None), z, t, t))
        return student

    def portable(self) -> PortableNetwork:
        code = Path(__file__).parent / "portable" / "freeflow_transformer.py"
        config = self.network.config.model_dump(mode="json", exclude={"jump", "prediction"})
        return PortableNetwork("FreeFlowTransformer2DModel", config, self.network.state_dict(), code)

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Tensor | None) -> Tensor:
        return jump_output(self.network, x_t, t, s, condition, guidance)


@final
class VelocityTransformer(TransformerStudent):
    """v(x_t, t, c): the transformer alone, to be trained into a teacher. It ignores s and guidance.

    Its u(x_t, t, s) is v(x_t, t) for every s, so its jump is one Euler step. An unconditional one ignores labels.
    """

    def check(self, architecture: TransformerConfig) -> None:
        if architecture.jump or architecture.guidance:
            raise ConfigError(
                "This is a distilled student: its output is an average velocity. A velocity network takes neither a "
                "duration nor a guidance weight. Load it as the student `transformer`."
            )

    @classmethod
    def from_config(cls, config: VelocityTransformerConfig, context: BuildContext) -> Self:
        architecture = student_architecture(config, context, num_classes=config.num_classes, jump=False, guidance=False)
        return cls(fresh_network(architecture, context), weights=config.initialise)

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Tensor | None) -> Tensor:
        labels = condition if self.num_classes is not None else None
        return self.network(x_t, self.network.own_time(t), labels)


def jump_output(
    network: DiffusionTransformer, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Tensor | None
) -> Tensor:
    """What ``network``, which takes the duration, answers to a jump from ``t`` to ``s`` (N,); no guidance is 1."""
    if t.device != s.device:
        t, s = (time.to(x_t.device, torch.promote_types(x_t.dtype, torch.float32)) for time in (t, s))
    if not network.config.guidance:
        guidance = None
    elif guidance is None:
        guidance = torch.ones_like(t)
    output: Tensor = network(x_t, network.own_time(t), condition, t - s, guidance)
    return output


def nothing_taken(teacher: Teacher, new: dict[str, Any]) -> LoadReport:
    """The report of a student that does not start from its teacher's weights."""
    state = teacher.network_state()
    return LoadReport(new=tuple(new), left=() if state is None else tuple(state.tensors))


def fresh_network(architecture: TransformerConfig, context: BuildContext) -> DiffusionTransformer:
    """Fresh weights, drawn on the host whatever the device; shapes alone where the run is only planned."""
    if context.device.type == "meta":
        return DiffusionTransformer(architecture, device="meta")
    return DiffusionTransformer(architecture, torch.Generator().manual_seed(context.seed))


def student_architecture(
    options: TransformerOptions, context: BuildContext, *, num_classes: int | None, jump: bool, guidance: bool | None
) -> TransformerConfig:
    """The architecture of a student: as asked, else as the teacher, else a small default.

    Args:
        num_classes: 0 for an unconditional network; None: the teacher's, else the source's.
        jump, guidance: further inputs; ``guidance`` None: exactly when the network has classes.

    Raises:
        ConfigError: states that are not (C, H, W), or whose shape is unknown; sizes that do not go together.
    """
    shape = _sample_shape(options, context)
    base = teacher_architecture(context.teacher)
    if base is not None and base.prediction == "noise":
        if options.initialise == "teacher":
            refuse_noise_prediction(base)
        # Its size is a good one; what its output and its second half mean is not a student's.
        base = base.model_copy(update={**_OWN_CONVENTION, "learn_sigma": False})
    if base is not None:
        values: dict[str, Any] = base.model_dump()
    else:
        origin = context.teacher if context.teacher is not None else context.source
        classes = (origin.num_classes or 0) if origin is not None else 0
        values = {**_DEFAULTS, "patch_size": _default_patch_size(*shape[1:]), "num_classes": classes}
    values.update(SIZES[options.size] if options.size else {})
    values.update({name: value for name in _BACKBONE if (value := getattr(options, name)) is not None})
    if num_classes is not None:
        values["num_classes"] = num_classes
    values.update(sample_shape=shape, jump=jump, guidance=values["num_classes"] > 0 if guidance is None else guidance)
    return TransformerConfig(**values)


def _sample_shape(options: TransformerOptions, context: BuildContext) -> tuple[int, int, int]:
    shape: tuple[int, ...] | None = options.sample_shape
    if shape is None and context.teacher is not None:
        shape = context.teacher.sample_shape
    if shape is None and context.source is not None:
        shape = context.source.image_shape
    if shape is None:
        raise ConfigError(
            "A transformer needs the shape of its states, and neither the teacher nor the source tells it. "
            "Set student.sample_shape=[C, H, W]."
        )
    if len(shape) != 3:
        raise ConfigError(
            f"A transformer works on images or latents of shape (C, H, W), but states here are {tuple(shape)}. "
            "Choose another student, such as `mlp`, for vector states."
        )
    return shape[0], shape[1], shape[2]


def _default_patch_size(height: int, width: int) -> int:
    """The smallest divisor of both sides, from 2 up, with at most 256 tokens; else the largest common one."""
    common = [size for size in range(1, min(height, width) + 1) if height % size == 0 and width % size == 0]
    fitting = [size for size in common if size >= 2 and height * width <= _MAX_DEFAULT_TOKENS * size**2]
    return fitting[0] if fitting else common[-1]
