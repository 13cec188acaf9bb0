"""From a teacher's options to its network: read, detect, check against what was asked for, load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.interfaces import BuildContext
from freeflow_core.types import NetworkState
from freeflow_transformers.architecture import SIZES, TransformerConfig
from freeflow_transformers.config import ReleasedTeacherConfig, SiTRepaTeacherConfig, SiTTeacherConfig
from freeflow_transformers.network import DiffusionTransformer, fill_with_random_weights
from freeflow_transformers.released.detection import Detected, describe, detect, family_differences
from freeflow_transformers.released.families import (
    FAMILIES,
    LATENT_CHANNELS,
    LATENT_CODEC,
    LATENT_FACTOR,
    NUM_CLASSES,
    Family,
    weights_name,
)
from freeflow_transformers.released.published import published_names
from freeflow_transformers.released.reading import Checkpoint, read_checkpoint
from freeflow_transformers.weights import filled_network, transformer_from_state

_BACKBONE = ("depth", "width", "num_heads", "patch_size", "num_classes")


@final
@dataclass(frozen=True)
class LoadedTeacher:
    """A teacher's network, and what is known of it.

    Args:
        network: on the CPU, or the meta device.
        guidance_channels: guidance applies to the first that many; None: to all.
        provenance: where it comes from and what was taken, in words.
        origin: the file, or None without one.
        is_published: whether the family's convention was assumed for weights that do not state it.
        codec: name of the codec whose states it works on, where known.
    """

    network: DiffusionTransformer
    guidance_channels: int | None
    provenance: str
    origin: Path | None = None
    is_published: bool = False
    codec: str | None = None


def load_teacher_network(config: ReleasedTeacherConfig, context: BuildContext) -> LoadedTeacher:
    """The network that the options of ``sit``, ``sit-repa`` or ``dit`` ask for.

    On the device ``meta`` nothing is fetched, and of a local checkpoint only names and shapes are read.

    Raises:
        CheckpointError: a file that is missing, damaged, or of another family; the differences are listed.
        ConfigError: options that the checkpoint contradicts, or a size without published weights.
    """
    family = FAMILIES[config.family]
    shapes_only = context.device.type == "meta"
    path = _path(config, family, context)
    if path is None:
        loaded = _without_checkpoint(config, family, context, shapes_only)
    else:
        checkpoint = read_checkpoint(path, config.weights, shapes_only=shapes_only)
        own = "family" in checkpoint.metadata
        loaded = _pretrained(config, family, checkpoint) if own else _released(config, family, checkpoint)
    return loaded


def _path(config: ReleasedTeacherConfig, family: Family, context: BuildContext) -> Path | None:
    """The checkpoint to read, or None for a network from options alone."""
    if config.initialise == "random":
        return None
    if config.checkpoint is not None:
        return config.checkpoint
    if context.device.type == "meta":
        return None
    size = config.size or "XL"
    name = weights_name(family.name, size, config.patch_size or 2, config.resolution or 256)
    if config.depth is not None or name not in published_names(family.name):
        asked = f"{config.depth} blocks of width {config.width}" if config.depth is not None else name
        raise ConfigError(
            f"There are no published weights for {asked} (there are {', '.join(published_names(family.name))}). Name "
            "yours in teacher.checkpoint, or try things out with teacher.initialise=random."
        )
    return context.weights(name)


def _without_checkpoint(
    config: ReleasedTeacherConfig, family: Family, context: BuildContext, shapes_only: bool
) -> LoadedTeacher:
    """Random weights, or shapes alone."""
    architecture = _with_convention(_architecture_from_options(config, family), config, family)
    origin = "random weights" if config.initialise == "random" else "published weights (not read here)"
    if shapes_only:
        network = DiffusionTransformer(architecture, device="meta")
    else:
        generator = torch.Generator().manual_seed(context.seed)
        network = DiffusionTransformer(architecture, generator)
        fill_with_random_weights(network, generator)
    provenance = f"{family.name}, {origin}: {describe(architecture)}; {_conventions(config, family, architecture)}"
    channels = _guidance_channels(config, family.guidance_channels)
    return LoadedTeacher(network, channels, provenance, codec=LATENT_CODEC)


def _released(config: ReleasedTeacherConfig, family: Family, checkpoint: Checkpoint) -> LoadedTeacher:
    detected = detect(checkpoint.shapes, checkpoint.path, config.num_heads)
    _check_family(family, detected, checkpoint)
    _check_options(config, detected.architecture, checkpoint.path)
    architecture = _with_convention(detected.architecture, config, family)
    kept = {name: t for name, t in checkpoint.tensors.items() if name.split(".")[0] not in family.ignored}
    network = filled_network(architecture, kept)
    ignored = len(checkpoint.tensors) - len(kept)
    others = [name for name in detected.families if name != family.name]
    told = f"names and shapes fit {', '.join(detected.families)}" + (
        f", {family.name} is what was asked for" if others else ""
    )
    provenance = (
        f"{family.name} from {checkpoint.path} ({checkpoint.container}; {told}): {describe(architecture)}; "
        f"{_conventions(config, family, architecture)}"
        + (f"; {ignored} tensors not needed ({', '.join(family.ignored)})" if ignored else "")
    )
    return LoadedTeacher(
        network,
        _guidance_channels(config, family.guidance_channels),
        provenance,
        checkpoint.path,
        is_published=not network.pos_embed.is_meta,
        codec=LATENT_CODEC,
    )


def _pretrained(config: ReleasedTeacherConfig, family: Family, checkpoint: Checkpoint) -> LoadedTeacher:
    """A file that this project wrote says itself what it is, its convention included."""
    if not isinstance(config, SiTTeacherConfig):
        raise CheckpointError(
            f"{checkpoint.path} was written by `freeflow pretrain`, not by the authors of {family.name}. Use it as the "
            "teacher `sit`."
        )
    metadata = checkpoint.metadata
    tensors = {name: t.float() if t.is_floating_point() else t for name, t in checkpoint.tensors.items()}
    state = NetworkState(metadata["family"], metadata.get("config", {}), tensors)
    network = transformer_from_state(state, f"teacher checkpoint {checkpoint.path}")
    stored = network.config
    contradictions = [
        f"{name}={asked}, but it stores {getattr(stored, name)}"
        for name in ("time_direction", "sign")
        if (asked := getattr(config, name)) is not None and asked != getattr(stored, name)
    ]
    if contradictions:
        raise ConfigError(f"{checkpoint.path} contradicts teacher.{'; teacher.'.join(contradictions)}. Leave it out.")
    _check_options(config, stored, checkpoint.path)
    provenance = (
        f"transformer from {checkpoint.path} (written by freeflow): {describe(stored)}; "
        f"{_conventions(config, None, stored)}"
    )
    codec = metadata.get("codec") or {}
    return LoadedTeacher(
        network, _guidance_channels(config, None), provenance, checkpoint.path, codec=dict(codec).get("name")
    )


def _check_family(family: Family, detected: Detected, checkpoint: Checkpoint) -> None:
    if not detected.is_student and family.name in detected.families:
        return
    differences = family_differences(
        checkpoint.shapes, detected.architecture.model_copy(update={"jump": False, "guidance": False}), family
    )
    if detected.is_student:
        verdict = "the published FreeFlow students, which answer with an average velocity; use it with --student"
    elif detected.families:
        verdict = f"the teacher {' or '.join(detected.families)}"
    else:
        verdict = "none of the published teachers"
    raise CheckpointError(
        f"{checkpoint.path} ({checkpoint.container}) is not of the family {family.name!r}: {'; '.join(differences)}. "
        f"Its names and shapes are those of {verdict}."
    )


def _check_options(config: ReleasedTeacherConfig, found: TransformerConfig, path: Path) -> None:
    """Options about the architecture are assertions where there is a checkpoint."""
    asked: dict[str, Any] = {name: getattr(config, name) for name in _BACKBONE}
    if config.size is not None:
        asked |= SIZES[config.size]
    differences = [
        f"{name} {getattr(found, name)}, not {value}"
        for name, value in asked.items()
        if value is not None and value != getattr(found, name)
    ]
    side = found.sample_shape[1] * LATENT_FACTOR
    if config.resolution is not None and config.resolution != side:
        differences.append(f"latents for {side} pixels, not {config.resolution}")
    if differences:
        raise ConfigError(
            f"{path} is not what the options ask for: it has {'; '.join(differences)}. Leave these options out, so "
            "that they follow the file, or choose another file."
        )


def _architecture_from_options(config: ReleasedTeacherConfig, family: Family) -> TransformerConfig:
    resolution = config.resolution or 256
    side = resolution // LATENT_FACTOR
    if config.depth is not None and config.width is not None:
        backbone = {"depth": config.depth, "width": config.width, "num_heads": config.num_heads or _named_heads(config)}
    else:
        backbone = SIZES[config.size or "XL"]
    return TransformerConfig(
        sample_shape=(LATENT_CHANNELS, side, side),
        patch_size=config.patch_size or 2,
        num_classes=config.num_classes or NUM_CLASSES,
        learn_sigma=family.default_learn_sigma(resolution),
        **backbone,
    )


def _named_heads(config: ReleasedTeacherConfig) -> int:
    named = [v["num_heads"] for v in SIZES.values() if (v["depth"], v["width"]) == (config.depth, config.width)]
    if not named:
        raise ConfigError("A size of one's own needs teacher.num_heads beside depth and width.")
    return named[0]


def _with_convention(
    architecture: TransformerConfig, config: ReleasedTeacherConfig, family: Family
) -> TransformerConfig:
    time_direction, sign = family.time_direction, family.sign
    if isinstance(config, (SiTTeacherConfig, SiTRepaTeacherConfig)):
        time_direction, sign = config.time_direction or time_direction, config.sign or sign
    return architecture.model_copy(
        update={"time_direction": time_direction, "sign": sign, "prediction": family.prediction}
    )


def _guidance_channels(config: ReleasedTeacherConfig, default: int | None) -> int | None:
    if config.guidance_channels is None:
        return default
    return None if config.guidance_channels == "all" else config.guidance_channels


def _conventions(config: ReleasedTeacherConfig, family: Family | None, architecture: TransformerConfig) -> str:
    channels = _guidance_channels(config, family.guidance_channels if family else None)
    guided = "all channels" if channels is None else f"the first {channels} channels"
    predicted = "predicts the noise" if architecture.prediction == "noise" else f"velocity {architecture.sign}"
    return f"time {architecture.time_direction}, {predicted}, guidance on {guided}"
