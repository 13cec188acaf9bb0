"""The published formats: what a checkpoint is, from the names and shapes of its tensors alone; and how to write one."""

import math
import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.files import replacing
from freeflow_core.network_file import Shapes, listed, save_tensors, shape_differences
from freeflow_core.types import NetworkState
from freeflow_transformers.architecture import FAMILY, SIZES, TransformerConfig, named_heads
from freeflow_transformers.network import DiffusionTransformer
from freeflow_transformers.released.families import FAMILIES, LATENT_FACTOR, Family

RELEASED_METADATA = "released"
"""Key of the metadata of an exported safetensors file: its family and heads, which tensors do not tell."""

_REQUIRED = {
    "x_embedder.proj.weight": 4,
    "pos_embed": 3,
    "y_embedder.embedding_table.weight": 2,
    "blocks.0.mlp.fc1.weight": 2,
    "final_layer.linear.weight": 2,
}
"""Tensors that tell the architecture, with their numbers of dimensions."""
_SCALAR_EMBEDDERS = ("t_embedder", "dt_embedder", "gw_embedder")


class Detected(NamedTuple):
    """What the tensors tell: the architecture, with this project's own convention, since conventions leave no trace in
    names and shapes; and the teachers it can be, by name, or for a student those its teacher can be of.
    """

    architecture: TransformerConfig
    families: tuple[str, ...]


def detect(shapes: Shapes, path: Path, num_heads: int | None = None) -> Detected:
    """Architecture and possible families of tensors of these shapes; ``path`` is for errors.

    Attention heads are visible only through ``qk_norm``. Else they are those of the named size that has this depth and
    width, or must be given as ``num_heads``.

    Raises:
        CheckpointError: tensors of another kind of network, or that contradict each other.
        ConfigError: heads that are neither visible nor given.
    """
    problems = [f"missing {name}" for name in _REQUIRED if name not in shapes]
    problems += [
        f"{name} is {shapes[name]}"
        for name, dimensions in _REQUIRED.items()
        if name in shapes and len(shapes[name]) != dimensions
    ]
    if problems:
        raise CheckpointError(
            f"{path} holds no diffusion transformer (DiT, SiT, REPA, FreeFlow): {listed(problems)}. Its tensors are "
            f"{listed(list(shapes))}. Choose another file."
        )
    width, channels, patch_size, _ = shapes["x_embedder.proj.weight"]
    tokens = shapes["pos_embed"][1]
    side = math.isqrt(tokens)
    out_channels, remainder = divmod(shapes["final_layer.linear.weight"][0], patch_size**2)
    if side**2 != tokens or remainder or out_channels not in (channels, 2 * channels):
        raise CheckpointError(
            f"{path} contradicts itself: {tokens} positions (expected a square number), and final_layer.linear.weight "
            f"{shapes['final_layer.linear.weight']} where patches of {patch_size} and {channels} channels need "
            f"{patch_size**2 * channels} or {2 * patch_size**2 * channels} rows."
        )
    depth = 1 + max(int(match[1]) for name in shapes if (match := re.match(r"blocks\.(\d+)\.", name)))
    norm = shapes.get("blocks.0.attn.q_norm.weight")
    heads = width // norm[0] if norm is not None else num_heads or named_heads(depth, width)
    if heads is None:
        raise ConfigError(
            f"The number of attention heads cannot be seen in {path}, and {depth} blocks of width {width} are none of "
            f"the sizes {', '.join(SIZES)}. Set the option num_heads."
        )
    architecture = TransformerConfig(
        sample_shape=(channels, side * patch_size, side * patch_size),
        patch_size=patch_size,
        width=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=shapes["blocks.0.mlp.fc1.weight"][0] / width,
        num_classes=shapes["y_embedder.embedding_table.weight"][0] - 1,
        null_class=True,
        learn_sigma=out_channels == 2 * channels,
        jump=any(name.startswith("dt_embedder.") for name in shapes),
        guidance=any(name.startswith("gw_embedder.") for name in shapes),
        qk_norm=norm is not None,
    )
    possible = tuple(name for name, family in FAMILIES.items() if not family_differences(shapes, architecture, family))
    return Detected(architecture, possible)


def family_differences(shapes: Shapes, architecture: TransformerConfig, family: Family) -> list[str]:
    """What keeps the tensors from being of ``family``: missing, unexpected and misshapen ones; empty when they fit."""
    if architecture.jump and family.prediction == "noise":
        return [f"a one-step student of a {family.name} teacher is not a published format"]
    if family.learn_sigma is not None:
        architecture = architecture.model_copy(update={"learn_sigma": family.learn_sigma})
    ignored = () if architecture.jump else family.ignored
    found = {name: shape for name, shape in shapes.items() if name.split(".")[0] not in ignored}
    return shape_differences(expected_shapes(architecture), found)


def expected_shapes(architecture: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published file of this architecture."""
    network = DiffusionTransformer(architecture, device="meta")
    return {
        released_name(name, student=architecture.jump): tuple(tensor.shape)
        for name, tensor in network.state_dict().items()
    }


def released_name(name: str, *, student: bool) -> str:
    """Name of one of our tensors in published files; students call the layers of their scalar embedders ``projs``."""
    embedder, _, rest = name.partition(".mlp.")
    return f"{embedder}.projs.{rest}" if student and embedder in _SCALAR_EMBEDDERS else name


def describe(architecture: TransformerConfig) -> str:
    """The architecture in words."""
    channels, height, width = architecture.sample_shape
    size = f" (size {architecture.size})" if architecture.size else ""
    pixels = f", {height * LATENT_FACTOR} pixels" if height * LATENT_FACTOR in (256, 512) else ""
    extras = [", qk_norm"] * architecture.qk_norm + [", duration and guidance inputs"] * architecture.jump
    return (
        f"{architecture.depth} blocks of width {architecture.width} with {architecture.num_heads} heads{size}, "
        f"patches of {architecture.patch_size}, states {channels}x{height}x{width}{pixels}, "
        f"{architecture.num_classes} classes, {architecture.out_channels} output channels{''.join(extras)}"
    )


def released_state_dict(state: NetworkState) -> dict[str, Tensor]:
    """The tensors under their published names, unaltered. Raises ``ConfigError`` where there are no such names."""
    architecture = _exportable(state)
    return {released_name(name, student=architecture.jump): tensor for name, tensor in state.tensors.items()}


def released_family(state: NetworkState) -> str:
    """The family, ``sit`` or ``sit-repa``, whose convention the network has; programs must be told it.

    Raises ``ConfigError`` for a network that no published format can hold.
    """
    architecture = _exportable(state)
    for family in FAMILIES.values():  # a REPA file has C output channels
        same = (family.time_direction, family.sign) == (architecture.time_direction, architecture.sign)
        if same and family.prediction == "velocity" and family.learn_sigma in (None, architecture.learn_sigma):
            return family.name
    raise ConfigError(
        f"No published family has time {architecture.time_direction}, velocity {architecture.sign} and "
        f"{architecture.out_channels} output channels for {architecture.channels}; sit has data-at-1 and "
        "data-minus-noise, sit-repa data-at-0, noise-minus-data and no more output channels than states."
    )


def export_released(state: NetworkState, path: Path) -> str:
    """Write ``path``, ``.safetensors`` or ``.pt`` by its suffix, atomically; what was written, in words.

    Raises:
        ConfigError: another suffix, or a network that the format cannot hold.
        CheckpointError: the file cannot be written; nothing half-written is left behind.
    """
    if path.suffix not in (".safetensors", ".pt"):
        raise ConfigError(f"Cannot export to {path}: expected a name that ends in .safetensors or .pt.")
    architecture, family = _exportable(state), released_family(state)
    tensors = {name: t.detach().cpu().contiguous() for name, t in released_state_dict(state).items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            save_tensors(path, tensors, {RELEASED_METADATA: {"family": family, "num_heads": architecture.num_heads}})
        else:  # a plain state dict, as load_state_dict of the authors' programs takes it
            with replacing(path) as temporary:
                torch.save(tensors, temporary)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path} cannot be written: {error}. Free some space or use another folder.") from error
    kind = "FreeFlow student" if architecture.jump else "velocity network"
    return f"{kind} with the convention of {family}, {len(tensors)} tensors"


def _exportable(state: NetworkState) -> TransformerConfig:
    if state.family != FAMILY:
        raise ConfigError(f"Only a {FAMILY} can be exported to the published formats, not a {state.family}.")
    architecture = TransformerConfig.from_stored(dict(state.config))
    _, height, width = architecture.sample_shape
    problems = {
        "it takes a duration but no guidance weight (train it with student.guidance=true)": (
            architecture.jump != architecture.guidance
        ),
        "it has no classes": architecture.num_classes == 0,
        "it has no null class": architecture.num_classes > 0 and not architecture.null_class,
        f"its states of {height} x {width} are not square": height != width,
        "it predicts the noise": architecture.prediction == "noise",
    }
    found = [text for text, applies in problems.items() if applies]
    if found:
        raise ConfigError(f"The network cannot be exported to the published formats: {'; '.join(found)}.")
    return architecture
