"""Published FreeFlow students (Tong et al. 2025, arXiv 2511.19428) as networks of this project.

Their sampler takes one step from noise z: z + f(z, t', d = 1, w) in SiT's convention (t' = 0), z - f(z, t', 1, w) in
REPA's (t' = 1). Both are x_s = x_t - (t - s) u with u the converted output, so the weights need no change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from torch import Tensor

from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.interfaces import BuildContext
from freeflow_core.types import NetworkState
from freeflow_transformers.architecture import FAMILY, SIZES, TransformerConfig
from freeflow_transformers.config import ReleasedStudentConfig
from freeflow_transformers.network import DiffusionTransformer
from freeflow_transformers.released.detection import (
    describe,
    detect,
    expected_shapes,
    family_differences,
    released_name,
    shape_differences,
)
from freeflow_transformers.released.export import RELEASED_METADATA
from freeflow_transformers.released.families import FAMILIES, LATENT_CHANNELS, LATENT_FACTOR, NUM_CLASSES
from freeflow_transformers.released.reading import read_checkpoint
from freeflow_transformers.weights import filled_network


@final
@dataclass(frozen=True)
class LoadedStudent:
    """A student's network and where it comes from, in words."""

    network: DiffusionTransformer
    provenance: str


def load_student_network(config: ReleasedStudentConfig, context: BuildContext) -> LoadedStudent:
    """The network that the options of a published student ask for.

    On the device ``meta`` nothing is fetched, and of a local checkpoint only names and shapes are read.

    Raises:
        CheckpointError: a file that is missing, damaged, of another kind, or of another family.
        ConfigError: a family or heads that the file does not tell and nobody named.
    """
    shapes_only = context.device.type == "meta"
    if config.checkpoint is None and shapes_only:
        architecture = _published_architecture(config)
        return LoadedStudent(
            DiffusionTransformer(architecture, device="meta"),
            f"{config.published}, shapes alone: {describe(architecture)}",
        )
    if config.checkpoint is None:
        assert config.published is not None  # the configuration of `freeflow` requires a checkpoint
        path = context.weights(config.published)
    else:
        path = config.checkpoint
    checkpoint = read_checkpoint(path, config.weights, shapes_only=shapes_only)
    if "family" in checkpoint.metadata:
        raise CheckpointError(
            f"{path} was written by this project, not in the published format. Use it as it is: --student {path}."
        )
    stored: Mapping[str, Any] = checkpoint.metadata.get(RELEASED_METADATA, {})
    state = student_from_released(
        checkpoint.tensors,
        path,
        family=config.family or stored.get("family") or config.family_default,
        num_heads=config.num_heads or stored.get("num_heads"),
    )
    architecture = TransformerConfig.from_stored(dict(state.config))
    provenance = (
        f"FreeFlow student from {path} ({checkpoint.container}): {describe(architecture)}; time "
        f"{architecture.time_direction}, velocity {architecture.sign}"
    )
    return LoadedStudent(filled_network(architecture, state.tensors), provenance)


def student_from_released(
    tensors: Mapping[str, Tensor], path: Path, *, family: str | None = None, num_heads: int | None = None
) -> NetworkState:
    """Published tensors as the state of a flow map; the tensors themselves are the same.

    Args:
        tensors: by their published names.
        path: where they come from, for errors.
        family: ``sit`` or ``sit-repa``, whose convention they have; None where only one is possible.
        num_heads: attention heads; None for a named size.

    Raises:
        CheckpointError: not a published student, or not of ``family``; the differences are listed.
        ConfigError: family or heads that the tensors do not tell.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    detected = detect(shapes, path, num_heads)
    student = detected.architecture.model_copy(update={"jump": True, "guidance": True})
    if not (detected.families and detected.architecture.jump and detected.architecture.guidance):
        differences = shape_differences(expected_shapes(student), shapes)
        raise CheckpointError(
            f"{path} is no published FreeFlow student: {'; '.join(differences)}."
            + (f" It is a checkpoint of the teacher {' or '.join(detected.families)}." if detected.families else "")
        )
    if family is None and len(detected.families) > 1:
        raise ConfigError(
            f"{path} fits students of {' and of '.join(detected.families)}: their conventions differ, but not in names "
            "and shapes. Say whose it is with the option family."
        )
    family = family or detected.families[0]
    if family not in detected.families:
        differences = family_differences(shapes, student, FAMILIES[family])
        raise CheckpointError(
            f"{path} cannot be the student of a {family} teacher: {'; '.join(differences)}. It fits "
            f"{' or '.join(detected.families)}."
        )
    convention = {"time_direction": FAMILIES[family].time_direction, "sign": FAMILIES[family].sign}
    architecture = student.model_copy(update=convention)
    own = DiffusionTransformer(architecture, device="meta").state_dict()
    return NetworkState(
        FAMILY,
        architecture.model_dump(mode="json"),
        {name: tensors[released_name(name, student=True)] for name in own},
    )


def _published_architecture(config: ReleasedStudentConfig) -> TransformerConfig:
    family = FAMILIES[config.family or config.family_default or "sit-repa"]
    side = config.resolution // LATENT_FACTOR
    return TransformerConfig(
        sample_shape=(LATENT_CHANNELS, side, side),
        patch_size=2,
        num_classes=NUM_CLASSES,
        learn_sigma=family.default_learn_sigma(config.resolution),
        jump=True,
        guidance=True,
        time_direction=family.time_direction,
        sign=family.sign,
        **SIZES["XL"],
    )
