"""From options to an architecture: as asked, else as the teacher, else a small default."""

from __future__ import annotations

from typing import Any

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import BuildContext
from freeflow_transformers.architecture import SIZES, TransformerConfig
from freeflow_transformers.config import TransformerOptions
from freeflow_transformers.weights import refuse_noise_prediction, teacher_architecture

_DEFAULTS = {"depth": 4, "width": 128, "num_heads": 4}
"""A million parameters: trains on a CPU."""
_MAX_DEFAULT_TOKENS = 256
_OWN_CONVENTION = {
    name: TransformerConfig.model_fields[name].default for name in ("time_direction", "sign", "prediction")
}
_BACKBONE = ("depth", "width", "num_heads", "patch_size", "mlp_ratio", "qk_norm")


def student_architecture(
    options: TransformerOptions, context: BuildContext, *, num_classes: int | None, jump: bool, guidance: bool | None
) -> TransformerConfig:
    """The architecture of a student.

    Args:
        options: what the user asked for.
        context: the teacher and the source that fill the gaps.
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
        values = {**_DEFAULTS, "patch_size": _default_patch_size(*shape[1:]), "num_classes": _known_classes(context)}
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


def _known_classes(context: BuildContext) -> int:
    if context.teacher is not None:
        return context.teacher.num_classes or 0
    return (context.source.num_classes or 0) if context.source is not None else 0


def _default_patch_size(height: int, width: int) -> int:
    """The smallest divisor of both sides, from 2 up, with at most 256 tokens; else the largest common one."""
    common = [size for size in range(1, min(height, width) + 1) if height % size == 0 and width % size == 0]
    fitting = [size for size in common if size >= 2 and height * width <= _MAX_DEFAULT_TOKENS * size**2]
    return fitting[0] if fitting else common[-1]
