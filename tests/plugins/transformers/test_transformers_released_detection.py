"""What a checkpoint is said to be, from names and shapes alone."""

from pathlib import Path

import pytest
from freeflow_transformers.architecture import SIZES, TransformerConfig
from freeflow_transformers.released.formats import describe, detect, expected_shapes

from freeflow_core.errors import CheckpointError, ConfigError

PATH = Path("somewhere/weights.pt")


def shapes_of(tensors):
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("family", "possible"),
    [
        ("sit", ("sit", "dit")),
        ("dit", ("sit", "dit")),
        ("sit-512", ("sit", "sit-repa")),
        ("sit-repa", ("sit-repa",)),
        ("freeflow", ("sit",)),
        ("freeflow-512", ("sit", "sit-repa")),
    ],
)
def test_families_that_fit(released_tensors, family, possible):
    """SiT and DiT do not differ; REPA without its projectors looks like SiT at 512 pixels."""
    detected = detect(shapes_of(released_tensors(family)), PATH, num_heads=3)
    assert detected.families == possible
    assert detected.architecture.jump == family.startswith("freeflow")


@pytest.mark.parametrize(
    ("size", "patch_size", "resolution"), [("S", 8, 256), ("B", 4, 512), ("L", 2, 256), ("XL", 2, 512)]
)
def test_every_named_architecture_is_recognised(size, patch_size, resolution):
    shape, learn_sigma = (4, resolution // 8, resolution // 8), resolution == 256
    options = {"patch_size": patch_size, "num_classes": 1000, "learn_sigma": learn_sigma, **SIZES[size]}
    architecture = TransformerConfig(sample_shape=shape, **options)
    detected = detect(expected_shapes(architecture), PATH)
    assert detected.architecture == architecture
    assert f"(size {size})" in describe(detected.architecture)


@pytest.mark.parametrize(
    "options", [{"qk_norm": True}, {"mlp_ratio": 2.5}, {"depth": 5}, {"num_classes": 1}, {"patch_size": 1}]
)
def test_parts_that_shapes_tell(released_tensors, options):
    architecture = detect(shapes_of(released_tensors("sit", **options)), PATH, num_heads=3).architecture
    for name, value in options.items():
        assert getattr(architecture, name) == value
    assert architecture.sample_shape == (4, 8, 8)


def test_heads_are_seen_named_or_asked_for(released_tensors):
    with pytest.raises(ConfigError, match=r"attention heads cannot be seen .* Set the option num_heads"):
        detect(shapes_of(released_tensors("sit")), PATH)
    with_norm = shapes_of(released_tensors("sit", qk_norm=True))
    assert detect(with_norm, PATH).architecture.num_heads == 3
    assert detect(with_norm, PATH, num_heads=2).architecture.num_heads == 3


def test_other_networks_are_named_by_what_they_hold():
    with pytest.raises(CheckpointError, match=r"missing x_embedder\.proj\.weight.* Its tensors are encoder\.conv_in"):
        detect({"encoder.conv_in.weight": (128, 3, 3, 3)}, PATH)
    linear = {"x_embedder.proj.weight": (48, 16)}
    with pytest.raises(CheckpointError, match=r"x_embedder\.proj\.weight is \(48, 16\)"):
        detect(linear, PATH)


def test_contradictions(released_tensors):
    shapes = shapes_of(released_tensors("sit"))
    with pytest.raises(CheckpointError, match=r"contradicts itself: 15 positions"):
        detect({**shapes, "pos_embed": (1, 15, 24)}, PATH, num_heads=3)
    with pytest.raises(CheckpointError, match=r"final_layer\.linear\.weight \(48, 24\) .* need 16 or 32 rows"):
        detect({**shapes, "final_layer.linear.weight": (48, 24)}, PATH, num_heads=3)
