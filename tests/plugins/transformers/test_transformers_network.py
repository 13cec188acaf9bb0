import math

import pytest
import torch
from freeflow_transformers.architecture import SIZES, TransformerConfig
from freeflow_transformers.network import DiffusionTransformer, position_embedding, sinusoidal_features
from hypothesis import given
from hypothesis import strategies as st

from freeflow_core.errors import ConfigError

TIMES = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
LABELS = torch.tensor([0, 4, 5])


def test_parameter_names_are_those_of_the_released_checkpoints(make_network):
    names = set(make_network(depth=1, jump=True, guidance=True).state_dict())
    layers = ["x_embedder.proj", "blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2"]
    layers += ["blocks.0.adaLN_modulation.1", "final_layer.linear", "final_layer.adaLN_modulation.1"]
    layers += [f"{embedder}.mlp.{i}" for embedder in ("t_embedder", "dt_embedder", "gw_embedder") for i in (0, 2)]
    expected = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    assert names == expected | {"pos_embed", "y_embedder.embedding_table.weight"}


@pytest.mark.parametrize(("size", "millions"), [("S", 33), ("B", 130), ("L", 458), ("XL", 675)])
def test_named_sizes_have_the_published_numbers_of_parameters(size, millions):
    # Peebles & Xie 2022, table 4 (patch 2, 1000 classes, latents 4 x 32 x 32, learnt sigma).
    config = TransformerConfig(
        sample_shape=(4, 32, 32), patch_size=2, num_classes=1000, learn_sigma=True, **SIZES[size]
    )
    network = DiffusionTransformer(config, device="meta")
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


@torch.no_grad()
def test_a_fresh_network_answers_zero_and_its_blocks_change_nothing(make_network, states):
    network = make_network(random=False, jump=True, guidance=True)
    assert not network(states(3), TIMES, LABELS, TIMES, TIMES).any()
    tokens, c = torch.randn(3, 6, 24), torch.randn(3, 24)
    assert torch.equal(network.blocks[0](tokens, c), tokens)


def test_fresh_weights_follow_the_generator_alone(make_network):
    before = torch.get_rng_state()
    first, again, other = (make_network(random=False, seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["blocks.1.attn.qkv.weight"], other["blocks.1.attn.qkv.weight"])
    assert not torch.equal(first["blocks.0.attn.qkv.weight"], first["blocks.1.attn.qkv.weight"])
    bound = math.sqrt(6 / (24 + 72))
    assert 0.9 * bound < first["blocks.0.attn.qkv.weight"].abs().max() <= bound
    assert first["t_embedder.mlp.0.weight"].std() == pytest.approx(0.02, rel=0.05)


@torch.no_grad()
def test_every_input_matters(make_network, states):
    network, x, ones = make_network(jump=True, guidance=True), states(3), torch.ones(3)
    base = network(x, TIMES, LABELS, TIMES, ones)
    for changed in (
        network(x, 0.9 * TIMES, LABELS, TIMES, ones),
        network(x, TIMES, (LABELS + 1) % 6, TIMES, ones),
        network(x, TIMES, LABELS, 0.9 * TIMES, ones),
        network(x, TIMES, LABELS, TIMES, 2 * ones),
    ):
        assert ((changed - base).flatten(1).norm(dim=1) > 1e-4).all()


@torch.no_grad()
def test_patches_keep_their_place(make_network):
    """With blocks that do nothing, a change inside one patch moves the output inside that patch alone."""
    network = make_network(sample_shape=(1, 4, 6), num_classes=0)
    for block in network.blocks:
        block.adaLN_modulation[1].weight.zero_()
        block.adaLN_modulation[1].bias.zero_()
    x = torch.zeros(1, 1, 4, 6)
    moved = x.clone()
    moved[0, 0, 3, 2] = 1.0
    difference = (network(moved, TIMES[:1], None) - network(x, TIMES[:1], None))[0, 0].abs() > 1e-7
    inside = torch.zeros(4, 6, dtype=torch.bool)
    inside[2:4, 2:4] = True
    assert torch.equal(difference, inside)


@torch.no_grad()
def test_states_may_be_finer_than_the_weights(make_network, states):
    network = make_network()
    out = network(states(3, dtype=torch.float64), TIMES, LABELS)
    assert out.dtype is torch.float64
    assert torch.equal(out.float(), network(states(3), TIMES, LABELS))


@torch.no_grad()
def test_scalars_are_embedded_in_full_precision_under_autocast(make_network, states):
    network = make_network()
    exact = network.t_embedder(TIMES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network.t_embedder(TIMES), exact)
        coarse = network(states(3), TIMES, LABELS)
    assert coarse.dtype is torch.float32
    out = network(states(3), TIMES, LABELS)
    assert 0 < (coarse - out).norm() / out.norm() < 0.05


@given(st.floats(0, 8))
def test_features_are_cosines_then_sines_from_one_radian_down(value):
    features = sinusoidal_features(torch.tensor([value], dtype=torch.float64))[0]
    assert features.shape == (256,)
    for i in (0, 1, 64, 127):
        angle = value * math.exp(-math.log(10_000) * i / 128)
        assert features[i].item() == pytest.approx(math.cos(angle), abs=1e-12)
        assert features[128 + i].item() == pytest.approx(math.sin(angle), abs=1e-12)


def test_positions_encode_the_column_first():
    embedding = position_embedding(2, 3, 8)[0].reshape(2, 3, 8)
    assert torch.equal(embedding[0, :, :4], embedding[1, :, :4])
    assert torch.equal(embedding[:, 0, 4:], embedding[:, 2, 4:])
    column_2_row_1 = [math.sin(2), math.sin(0.02), math.cos(2), math.cos(0.02)]
    column_2_row_1 += [math.sin(1), math.sin(0.01), math.cos(1), math.cos(0.01)]
    assert embedding[1, 2].tolist() == pytest.approx(column_2_row_1, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 4}, "Patches of 4 do not tile states of 4 x 6"),
        ({"num_heads": 5}, "width of 24 does not split into 5 heads"),
        ({"width": 6}, "multiple of 4"),
    ],
)
def test_numbers_that_do_not_go_together(make_network, options, message):
    with pytest.raises(ConfigError, match=message):
        make_network(**options)


@pytest.mark.parametrize(
    ("condition", "came"),
    [
        (None, "got None"),
        (torch.zeros(3), r"got \(3,\) float32"),
        ({"label": torch.zeros(3, dtype=torch.long)}, r"got \{"),
    ],
)
def test_conditions_that_are_not_labels(make_network, states, condition, came):
    with pytest.raises(ConfigError, match=f"5 classes.*{came}"):
        make_network()(states(3), TIMES, condition)


def test_inputs_that_the_network_does_not_have(make_network, states):
    with pytest.raises(ConfigError, match="unconditional"):
        make_network(num_classes=0)(states(3), TIMES, LABELS)
    with pytest.raises(ValueError, match="has no duration input"):
        make_network()(states(3), TIMES, LABELS, TIMES)
    with pytest.raises(ValueError, match="needs a guidance input"):
        make_network(guidance=True)(states(3), TIMES, LABELS)
    with pytest.raises(ValueError, match="expected states"):
        make_network()(states(3, (2, 4, 4)), TIMES, LABELS)
