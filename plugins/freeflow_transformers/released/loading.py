"""From the options of a published teacher or student to its network: read, detect, check against what was asked for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.interfaces import BuildContext, Student, Teacher
from freeflow_core.network_file import Shapes, shape_differences
from freeflow_core.types import Condition, NetworkState
from freeflow_transformers.architecture import SIZES, TransformerConfig, named_heads
from freeflow_transformers.config import ReleasedStudentConfig, ReleasedTeacherConfig
from freeflow_transformers.network import DiffusionTransformer, fill_with_random_weights
from freeflow_transformers.released.families import (
    FAMILIES,
    LATENT_CHANNELS,
    LATENT_CODEC,
    LATENT_FACTOR,
    NUM_CLASSES,
    Family,
    published_names,
)
from freeflow_transformers.released.formats import (
    RELEASED_METADATA,
    Detected,
    describe,
    detect,
    expected_shapes,
    family_differences,
    released_name,
)
from freeflow_transformers.released.reading import Checkpoint, read_checkpoint
from freeflow_transformers.weights import differences, filled_network, transformer_from_state

_MIN_ALIGNMENT = 0.5


@final
@dataclass(frozen=True)
class LoadedNetwork:
    """A network, and what is known of it.

    Args:
        network: on the CPU, or the meta device.
        provenance: where it comes from and what was taken, in words.
        origin: the file, or None without one.
        guidance_channels: guidance applies to the first that many; None: to all.
        codec: name of the codec whose states it works on, where known.
        is_assumed: whether a family's convention was assumed for weights that do not state it.
    """

    network: DiffusionTransformer
    provenance: str
    origin: Path | None = None
    guidance_channels: int | None = None
    codec: str | None = LATENT_CODEC
    is_assumed: bool = False

    @torch.no_grad()
    def describe(self, model: Teacher | Student, answer: Callable[[Tensor, Tensor, Condition], Tensor]) -> None:
        """Tell ``model``, made of the network, what is known of it, after a check of an assumed convention.

        At t = 1 a state is pure noise z and tells nothing of the data, so the best velocity n - x is z minus the mean
        image, almost parallel to z. A network of the opposite convention answers almost the opposite; one that predicts
        the noise answers z. Random weights answer something unrelated.

        ``answer`` is its velocity, or the noise it predicts, for states, times and labels.

        Raises:
            CheckpointError: the network answers the opposite of what its convention says.
        """
        model.codec, model.provenance = self.codec, self.provenance
        noise_time = 1.0
        if isinstance(model, Teacher):
            model.guidance_channels, noise_time = self.guidance_channels, model.time_range[1]
        device = self.network.pos_embed.device
        if not self.is_assumed or device.type == "meta":
            return
        z = torch.randn(2, *model.sample_shape, generator=torch.Generator().manual_seed(0)).to(device)
        labels = None if model.num_classes is None else torch.arange(2) % model.num_classes
        direction = answer(z, torch.full((2,), noise_time, dtype=torch.float64), labels).to(z)
        alignment = float(torch.nn.functional.cosine_similarity(z.flatten(), direction.flatten(), dim=0))
        if alignment < -_MIN_ALIGNMENT:
            raise CheckpointError(
                f"{self.origin} does not follow the convention it was read with ({_convention(self.network.config)}): "
                f"asked about pure noise, it points the opposite way (cosine {alignment:.2f}, expected near 1). Its "
                "weights are of another family: choose the teacher, or the options family, time_direction and sign, "
                "that describe them."
            )
        agrees = alignment > _MIN_ALIGNMENT
        verdict = "as its convention says" if agrees else "which tells nothing (untrained weights?)"
        model.provenance += f"; asked about pure noise it answers at cosine {alignment:.2f} to it, {verdict}"


# --- teachers ---


def load_teacher_network(config: ReleasedTeacherConfig, context: BuildContext) -> LoadedNetwork:
    """The network that the options of ``sit``, ``sit-repa`` or ``dit`` ask for.

    On the device ``meta`` nothing is fetched, and of a local checkpoint only names and shapes are read.

    Raises:
        CheckpointError: a file that is missing, damaged, or of another family; the differences are listed.
        ConfigError: options that the checkpoint contradicts, or a size without published weights.
    """
    family, shapes_only = FAMILIES[config.family], context.device.type == "meta"
    if config.initialise == "random" or (config.checkpoint is None and shapes_only):
        network = _unread_network(config, family, context)
        origin = "random weights" if config.initialise == "random" else "published weights (not read here)"
        return _teacher(config, network, f"{family.name}, {origin}", family.guidance_channels)
    path = config.checkpoint or context.weights(_published_name(config, family))
    checkpoint = read_checkpoint(path, config.weights, shapes_only=shapes_only)
    if "family" in checkpoint.metadata:
        return _pretrained_teacher(config, family, checkpoint)
    return _released_teacher(config, family, checkpoint)


def _published_name(config: ReleasedTeacherConfig, family: Family) -> str:
    size = (config.size or "XL").lower()
    name = f"{family.name}-{size}-{config.patch_size or 2}-{config.resolution or 256}"
    known = published_names(family.name)
    if config.depth is None and name in known:
        return name
    asked = f"{config.depth} blocks of width {config.width}" if config.depth is not None else name
    raise ConfigError(
        f"There are no published weights for {asked} (there are {', '.join(known)}). Name yours in "
        "teacher.checkpoint, or try things out with teacher.initialise=random."
    )


def _unread_network(config: ReleasedTeacherConfig, family: Family, context: BuildContext) -> DiffusionTransformer:
    backbone = SIZES[config.size or "XL"]
    if config.depth is not None and config.width is not None:
        heads = config.num_heads or named_heads(config.depth, config.width)
        if heads is None:
            raise ConfigError("A size of one's own needs teacher.num_heads beside depth and width.")
        backbone = {"depth": config.depth, "width": config.width, "num_heads": heads}
    architecture = published_architecture(
        config.resolution or 256,
        family,
        patch_size=config.patch_size or 2,
        num_classes=config.num_classes or NUM_CLASSES,
        **backbone,
        **config.convention,
    )
    if context.device.type == "meta":
        return DiffusionTransformer(architecture, device="meta")
    generator = torch.Generator().manual_seed(context.seed)
    network = DiffusionTransformer(architecture, generator)
    fill_with_random_weights(network, generator)
    return network


def _released_teacher(config: ReleasedTeacherConfig, family: Family, checkpoint: Checkpoint) -> LoadedNetwork:
    detected = detect(checkpoint.shapes, checkpoint.path, config.num_heads)
    if detected.architecture.jump or family.name not in detected.families:
        raise _of_another_family(family, detected, checkpoint)
    _check_options(config, detected.architecture, checkpoint.path)
    architecture = detected.architecture.model_copy(update={**family.convention, **config.convention})
    kept = {name: t for name, t in checkpoint.tensors.items() if name.split(".")[0] not in family.ignored}
    ignored = len(checkpoint.tensors) - len(kept)
    told = f"{checkpoint.container}; names and shapes fit {', '.join(detected.families)}"
    told += f", {family.name} is what was asked for" if len(detected.families) > 1 else ""
    told += f"; {ignored} tensors not needed ({', '.join(family.ignored)})" if ignored else ""
    what = f"{family.name} from {checkpoint.path} ({told})"
    network = filled_network(architecture, kept)
    return _teacher(config, network, what, family.guidance_channels, origin=checkpoint.path, is_assumed=True)


def _pretrained_teacher(config: ReleasedTeacherConfig, family: Family, checkpoint: Checkpoint) -> LoadedNetwork:
    """A file that this project wrote says itself what it is, its convention included."""
    path, metadata = checkpoint.path, checkpoint.metadata
    if family.name != "sit":
        raise CheckpointError(
            f"{path} was written by `freeflow pretrain`, not by the authors of {family.name}. Use it as the teacher "
            "`sit`."
        )
    tensors = {name: t.float() if t.is_floating_point() else t for name, t in checkpoint.tensors.items()}
    state = NetworkState(metadata["family"], metadata.get("config", {}), tensors)
    network = transformer_from_state(state, f"teacher checkpoint {path}")
    _check_options(config, network.config, path, **config.convention)
    codec = dict(metadata.get("codec") or {}).get("name")
    return _teacher(config, network, f"transformer from {path} (written by freeflow)", None, origin=path, codec=codec)


def _teacher(
    config: ReleasedTeacherConfig, network: DiffusionTransformer, what: str, guidance_channels: int | None, **known: Any
) -> LoadedNetwork:
    """``guidance_channels``: where the options name none. ``known``: further fields."""
    if config.guidance_channels is not None:
        guidance_channels = None if config.guidance_channels == "all" else config.guidance_channels
    guided = "all channels" if guidance_channels is None else f"the first {guidance_channels} channels"
    provenance = f"{what}: {describe(network.config)}; {_convention(network.config)}, guidance on {guided}"
    return LoadedNetwork(network, provenance, guidance_channels=guidance_channels, **known)


def _of_another_family(family: Family, detected: Detected, checkpoint: Checkpoint) -> CheckpointError:
    velocity_network = detected.architecture.model_copy(update={"jump": False, "guidance": False})
    problems = family_differences(checkpoint.shapes, velocity_network, family)
    verdict = f"the teacher {' or '.join(detected.families)}" if detected.families else "none of the published teachers"
    if detected.architecture.jump:
        verdict = "the published FreeFlow students, which answer with an average velocity; use it as a student"
    return CheckpointError(
        f"{checkpoint.path} ({checkpoint.container}) is not of the family {family.name!r}: {'; '.join(problems)}. "
        f"Its names and shapes are those of {verdict}."
    )


def _check_options(config: ReleasedTeacherConfig, found: TransformerConfig, path: Path, **convention: str) -> None:
    """Options about the architecture are assertions where there is a checkpoint."""
    names = ("depth", "width", "num_heads", "patch_size", "num_classes")
    asked = {name: getattr(config, name) for name in names} | convention
    asked |= SIZES[config.size] if config.size is not None else {}
    problems = differences(found, {name: value for name, value in asked.items() if value is not None})
    side = found.sample_shape[1] * LATENT_FACTOR
    if config.resolution is not None and config.resolution != side:
        problems.append(f"latents for {side} pixels, not {config.resolution}")
    if problems:
        raise ConfigError(
            f"{path} is not what the options ask for: it has {'; '.join(problems)}. Leave these options out, so "
            "that they follow the file, or choose another file."
        )


# --- students ---


def load_student_network(config: ReleasedStudentConfig, context: BuildContext) -> LoadedNetwork:
    """The network that the options of a published student (Tong et al. 2025) ask for.

    Its sampler takes one step from noise z: z + f(z, t', d = 1, w) in SiT's convention (t' = 0), z - f(z, t', 1, w) in
    REPA's (t' = 1). Both are x_s = x_t - (t - s) u with u the converted output, so the weights need no change.

    On the device ``meta`` nothing is fetched, and of a local checkpoint only names and shapes are read.

    Raises:
        CheckpointError: a file that is missing, damaged, of another kind, or of another family.
        ConfigError: a family or heads that the file does not tell and nobody named.
    """
    shapes_only = context.device.type == "meta"
    if config.checkpoint is None and shapes_only:
        family = FAMILIES[config.family or config.family_default or "sit-repa"]
        architecture = published_architecture(config.resolution, family, jump=True, guidance=True, **SIZES["XL"])
        network = DiffusionTransformer(architecture, device="meta")
        return LoadedNetwork(network, f"{config.published}, shapes alone: {describe(architecture)}")
    path = config.checkpoint
    if path is None:
        assert config.published is not None  # the configuration of `freeflow` requires a checkpoint
        path = context.weights(config.published)
    checkpoint = read_checkpoint(path, config.weights, shapes_only=shapes_only)
    if "family" in checkpoint.metadata:
        raise CheckpointError(f"{path} was written by this project. Use it as it is: --student {path}.")
    stored: Mapping[str, Any] = checkpoint.metadata.get(RELEASED_METADATA, {})
    architecture = released_student(
        checkpoint.shapes,
        path,
        family=config.family or stored.get("family") or config.family_default,
        num_heads=config.num_heads or stored.get("num_heads"),
    )
    convention = _convention(architecture)
    provenance = f"FreeFlow student from {path} ({checkpoint.container}): {describe(architecture)}; {convention}"
    own = DiffusionTransformer(architecture, device="meta").state_dict()
    network = filled_network(architecture, {n: checkpoint.tensors[released_name(n, student=True)] for n in own})
    return LoadedNetwork(network, provenance, path, is_assumed=True)


def released_student(
    shapes: Shapes, path: Path, *, family: str | None = None, num_heads: int | None = None
) -> TransformerConfig:
    """The architecture and convention of a published student, from ``shapes`` by their published names.

    ``path`` is for errors. Raises as :func:`load_student_network` does.
    """
    detected = detect(shapes, path, num_heads)
    student, families = detected.architecture.model_copy(update={"jump": True, "guidance": True}), detected.families
    if not (families and detected.architecture.jump and detected.architecture.guidance):
        problems = shape_differences(expected_shapes(student), shapes)
        raise CheckpointError(
            f"{path} is no published FreeFlow student: {'; '.join(problems)}."
            + (f" It is a checkpoint of the teacher {' or '.join(families)}." if families else "")
        )
    if family is None and len(families) > 1:
        raise ConfigError(
            f"{path} fits students of {' and of '.join(families)}: their conventions differ, but not in names and "
            "shapes. Say whose it is with the option family."
        )
    family = family or families[0]
    if family not in families:
        problems = family_differences(shapes, student, FAMILIES[family])
        raise CheckpointError(
            f"{path} cannot be the student of a {family} teacher: {'; '.join(problems)}. It fits "
            f"{' or '.join(families)}."
        )
    return student.model_copy(update=FAMILIES[family].convention)


# --- both ---


def published_architecture(resolution: int, family: Family, **options: Any) -> TransformerConfig:
    """The architecture and convention of ``family``'s published network for images of that many pixels."""
    side = resolution // LATENT_FACTOR
    defaults = {
        "sample_shape": (LATENT_CHANNELS, side, side),
        "patch_size": 2,
        "num_classes": NUM_CLASSES,
        "learn_sigma": resolution == 256 if family.learn_sigma is None else family.learn_sigma,
        **family.convention,
    }
    return TransformerConfig(**{**defaults, **options})


def _convention(architecture: TransformerConfig) -> str:
    predicted = "predicts the noise" if architecture.prediction == "noise" else f"velocity {architecture.sign}"
    return f"time {architecture.time_direction}, {predicted}"
