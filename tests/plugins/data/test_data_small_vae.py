"""The packaged autoencoder of 28x28 grey images, and its training."""

import importlib.resources
import math

import pytest
import torch
import typer
from freeflow_data.config import SmallVAEConfig
from freeflow_data.small_vae import ASSET, SmallAutoencoder, SmallVAECodec
from freeflow_data.train_autoencoder import main, train
from sklearn.datasets import load_digits
from tiny_files import write_mnist
from torch.nn import functional
from typer.testing import CliRunner

from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.interfaces import BuildContext
from freeflow_core.network_file import load_network, save_network
from freeflow_core.types import NetworkState


def build(**options):
    return SmallVAECodec.from_config(
        SmallVAEConfig.model_validate(options), BuildContext(torch.device("cpu"), 0, lambda *_: None)
    )


@pytest.fixture(scope="module")
def codec():
    return build()


@pytest.fixture(scope="module")
def digits():
    """Digits that it was not trained on: scikit-learn's 8x8 ones, enlarged to 20x20 in the middle of 28x28."""
    small = torch.from_numpy(load_digits().images[:100]).float()[:, None] / 16
    large = functional.interpolate(small, size=20, mode="bicubic").clamp(0, 1)
    return (255 * functional.pad(large, (4, 4, 4, 4))).round().to(torch.uint8)


def decibels(one, two):
    return 10 * math.log10(255**2 / float((one.float() - two.float()).square().mean()))


def test_the_asset_is_small_and_stored_as_float16():
    resource = importlib.resources.files("freeflow_data") / ASSET
    assert len(resource.read_bytes()) <= 600_000
    with importlib.resources.as_file(resource) as path:
        state, facts = load_network(path, torch.float16)
    assert sum(t.numel() for t in state.tensors.values()) <= 300_000
    assert facts["data"] == "mnist"
    assert (resource.parent / "mnist-vae.md").is_file()


def test_digits_survive_the_round_trip(codec, digits):
    x = codec.encode(digits)
    assert tuple(x.shape[1:]) == codec.state_shape((1, 28, 28)) == (4, 8, 8)
    assert decibels(codec.decode(x), digits) > 24
    mean, std = codec.moments(digits)
    drawn = mean + std * torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    assert decibels(codec.decode(drawn), digits) > 22
    assert 0.6 < drawn.std() < 1.6


def test_a_blank_image_stays_blank(codec):
    blank = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    assert codec.decode(codec.encode(blank)).max() < 40


def test_the_batch_size_changes_nothing(codec, digits):
    parts = build(batch_size=7)
    torch.testing.assert_close(parts.encode(digits[:20]), codec.encode(digits[:20]), rtol=1e-4, atol=1e-4)
    x = codec.encode(digits[:20])
    assert int((parts.decode(x).int() - codec.decode(x).int()).abs().max()) <= 1


def test_other_images_and_states_are_refused(codec):
    assert codec.state_shape((3, 256, 256)) is None
    for images in (torch.zeros(2, 3, 28, 28, dtype=torch.uint8), torch.zeros(2, 1, 28, 28)):
        with pytest.raises(ConfigError, match="train_autoencoder"):
            codec.encode(images)
    for states in (torch.zeros(2, 4, 7, 7), torch.zeros(2, 4, 8, 8, dtype=torch.int64)):
        with pytest.raises(ConfigError, match="codec pixels"):
            codec.decode(states)


def test_other_files_are_refused(tmp_path):
    save_network(tmp_path / "other.safetensors", NetworkState("another", {}, {}), {})
    with pytest.raises(CheckpointError, match="another"):
        build(checkpoint=tmp_path / "other.safetensors")
    state = NetworkState("freeflow_data.small_autoencoder", {"widths": [8]}, {})
    save_network(tmp_path / "odd.safetensors", state, {})
    with pytest.raises(CheckpointError, match="configuration of no use"):
        build(checkpoint=tmp_path / "odd.safetensors")


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 24, 20), (3, 8, 16)])
def test_any_sides_are_padded_for_patches_of_two_latents(shape):
    network = SmallAutoencoder(shape, latent_channels=2, widths=(4, 4))
    mean, _ = network.encode(torch.zeros(2, *shape))
    assert tuple(mean.shape[1:]) == network.latent_shape
    assert mean.shape[2] % 2 == mean.shape[3] % 2 == 0
    assert tuple(network.decode(mean).shape[1:]) == shape


def test_training_depends_on_its_arguments_alone(digits):
    before = torch.get_rng_state()
    first, second = (train(digits[:8], 1, 1e-3, 0).state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(
        not torch.equal(first[name], other) for name, other in train(digits[:8], 1, 1e-3, 1).state_dict().items()
    )


def test_the_command_writes_a_codec_whose_states_have_unit_deviation(tmp_path, digits):
    write_mnist(tmp_path, train=digits[:, 0].numpy(), t10k=digits[:, 0].numpy())
    app = typer.Typer()
    app.command()(main)
    output = tmp_path / "own.safetensors"
    arguments = ["--path", str(tmp_path), "--steps", "2", "--output", str(output)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "parameters" in result.output
    mean, std = build(checkpoint=output).moments(digits)
    drawn = mean + std * torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.std((0, 2, 3)), torch.ones(4), rtol=0.05, atol=0.05)
    result = CliRunner().invoke(app, ["--path", str(tmp_path / "absent"), "--output", str(output)])
    assert result.exit_code == 1
    assert "Error:" in result.output
