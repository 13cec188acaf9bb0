"""What a checkpoint is, from the names and shapes of its tensors alone. Its file name is never looked at."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_transformers.architecture import SIZES, TransformerConfig, named_heads
from freeflow_transformers.network import DiffusionTransformer
from freeflow_transformers.released.families import FAMILIES, LATENT_FACTOR, Family
from freeflow_transformers.released.reading import MAX_LISTED, listed

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

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
    architecture = TransformerConfig(
        sample_shape=(channels, side * patch_size, side * patch_size),
        patch_size=patch_size,
        width=width,
        depth=depth,
        num_heads=_heads(shapes, path, depth, width, num_heads),
        mlp_ratio=shapes["blocks.0.mlp.fc1.weight"][0] / width,
        num_classes=shapes["y_embedder.embedding_table.weight"][0] - 1,
        null_class=True,
        learn_sigma=out_channels == 2 * channels,
        jump=any(name.startswith("dt_embedder.") for name in shapes),
        guidance=any(name.startswith("gw_embedder.") for name in shapes),
        qk_norm="blocks.0.attn.q_norm.weight" in shapes,
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


def shape_differences(expected: Shapes, found: Shapes) -> list[str]:
    """``"missing a, b"``, ``"unexpected c"`` and ``"d is (2,), not (3,)"``; empty when they agree."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    wrong = [
        f"{name} is {found[name]}, not {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    return (
        [f"missing {listed(missing)}"] * bool(missing)
        + [f"unexpected {listed(unexpected)}"] * bool(unexpected)
        + wrong[:MAX_LISTED]
    )


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


def _heads(shapes: Shapes, path: Path, depth: int, width: int, given: int | None) -> int:
    norm = shapes.get("blocks.0.attn.q_norm.weight")
    if norm is not None:
        return width // norm[0]
    if given is not None:
        return given
    named = named_heads(depth, width)
    if named is None:
        raise ConfigError(
            f"The number of attention heads cannot be seen in {path}, and {depth} blocks of width {width} are none of "
            f"the sizes {', '.join(SIZES)}. Set the option num_heads."
        )
    return named
