"""Agreement with the forward passes of other implementations, on tiny random checkpoints in their own format."""

import json
from pathlib import Path

import pytest
import torch
from freeflow_transformers.architecture import TransformerConfig
from freeflow_transformers.network import DiffusionTransformer, position_embedding
from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(__file__).parents[3].parent / "shared" / "golden"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs the golden checkpoints")


def load(family: str, *, student: bool) -> tuple[DiffusionTransformer, dict[str, Tensor]]:
    options = json.loads((GOLDEN / f"a-{family}.json").read_text())
    config = TransformerConfig(
        sample_shape=(options["in_channels"], options["input_size"], options["input_size"]),
        patch_size=options["patch_size"],
        width=options["hidden_size"],
        depth=options["depth"],
        num_heads=options["num_heads"],
        mlp_ratio=options["mlp_ratio"],
        num_classes=options["num_classes"],
        learn_sigma=options["learn_sigma"],
        jump=student,
        guidance=student,
    )
    tensors = torch.load(GOLDEN / f"a-{family}.pt", weights_only=True)
    network = DiffusionTransformer(config)
    network.load_state_dict({name.replace("_embedder.projs.", "_embedder.mlp."): t for name, t in tensors.items()})
    return network, load_file(GOLDEN / f"a-{family}-io.safetensors")


@torch.no_grad()
def test_velocity_network_agrees_with_sit():
    network, io = load("sit", student=False)
    # SiT's own time runs from noise to data; the backbone only embeds the number it is given.
    out = network(io["x"], io["t"], io["y"])
    assert out.shape == (5, 8, 8, 8)
    torch.testing.assert_close(out[:, :4], io["out"], rtol=0, atol=1e-5)
    null = network(io["x"], io["t"], torch.full_like(io["y"], 10))
    torch.testing.assert_close(null[:, :4], io["out_null"], rtol=0, atol=1e-5)


@torch.no_grad()
def test_network_with_duration_and_guidance_agrees_with_the_released_student():
    network, io = load("freeflow", student=True)
    out = network(io["x"], io["t"], io["y"], io["dt"], io["gw"])
    torch.testing.assert_close(out, io["out"], rtol=0, atol=1e-5)


def test_position_embedding_is_the_stored_one():
    stored = torch.load(GOLDEN / "a-sit.pt", weights_only=True)["pos_embed"]
    torch.testing.assert_close(position_embedding(4, 4, 48), stored, rtol=0, atol=1e-7)
