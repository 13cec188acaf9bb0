"""Stable Diffusion's codec on a tiny random AutoencoderKL, made here."""

import json
import sys

import pytest
import torch
from freeflow_data import sd_vae
from freeflow_data.config import DiffusersVAEConfig, SDVAEConfig
from freeflow_data.sd_vae import AutoencoderKLCodec
from run_helpers import TINY
from safetensors.torch import load_file, save_file
from tiny_files import save_autoencoder

from freeflow_core import api
from freeflow_core.config import load_run_config
from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.interfaces import BuildContext

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_autoencoder(tmp_path_factory.mktemp("vae"))


def codec(folder, seed=0, weights=None, **options):
    context = BuildContext(torch.device("cpu"), seed, lambda *_: None, **({"weights": weights} if weights else {}))
    return AutoencoderKLCodec.from_config(SDVAEConfig(checkpoint=folder, **options), context)


def latents(number, size=8, dtype=torch.float32):
    return torch.randn(number, 4, size, size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def pictures(number, size=16):
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (number, 3, size, size), generator=generator, dtype=torch.uint8)


def levels_apart(one, two):
    return int((one.int() - two.int()).abs().max())


def raw(folder):
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(folder).eval()


@torch.no_grad()
def test_it_is_diffusers_autoencoder_with_the_family_s_scale_and_rounding(folder):
    z = latents(3)
    images = codec(folder).decode(z)
    values = raw(folder).decode(z / 0.18215).sample
    expected = torch.clamp(127.5 * values + 128.0, 0, 255).to(torch.uint8)
    assert (images.shape, images.dtype) == ((3, 3, 16, 16), torch.uint8)
    assert levels_apart(images, expected) == 0
    assert images.float().std() > 10, "a constant picture would prove nothing"
    x = codec(folder).encode(images)
    posterior = raw(folder).encode(images.float() / 127.5 - 1).latent_dist
    assert (x.shape, x.dtype) == (z.shape, torch.float32)
    torch.testing.assert_close(x, posterior.mean * 0.18215, rtol=1e-5, atol=1e-6)
    mean, std = codec(folder).moments(images)
    assert torch.equal(mean, x)
    torch.testing.assert_close(std, posterior.std * 0.18215, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_pipeline_s_autoencoder_shifts_and_scales_as_its_pipeline_does(tmp_path):
    """As SD3 and FLUX decode: latents / scaling_factor + shift_factor; an autoencoder without quantising layers."""
    numbers = {"scaling_factor": 1.5305, "shift_factor": 0.3}
    path = save_autoencoder(tmp_path / "vae", use_quant_conv=False, use_post_quant_conv=False, **numbers)
    context = BuildContext(torch.device("cpu"), 0, lambda *_: None)
    one, own = AutoencoderKLCodec.from_config(DiffusersVAEConfig(folder=tmp_path), context), raw(path)
    z = latents(3)
    images = one.decode(z)
    values = own.decode(z / 1.5305 + 0.3).sample
    assert levels_apart(images, torch.clamp(127.5 * values + 128.0, 0, 255).to(torch.uint8)) == 0
    posterior = own.encode(images.float() / 127.5 - 1).latent_dist
    mean, std = one.moments(images)
    torch.testing.assert_close(mean, (posterior.mean - 0.3) * 1.5305, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(std, posterior.std * 1.5305, rtol=1e-5, atol=1e-5)
    other = AutoencoderKLCodec.from_config(DiffusersVAEConfig(folder=path, scale=1.0, shift=0.0), context)
    torch.testing.assert_close(other.encode(images), posterior.mean, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("numbers", [{"scaling_factor": "1.5"}, {"scaling_factor": 0.0}, {"shift_factor": [0.1]}])
def test_numbers_that_are_none_are_refused(tmp_path, numbers):
    save_autoencoder(tmp_path / "vae", **numbers)
    context = BuildContext(torch.device("cpu"), 0, lambda *_: None)
    vae = AutoencoderKLCodec.from_config(DiffusersVAEConfig(folder=tmp_path), context)
    with pytest.raises(CheckpointError, match=next(iter(numbers))):
        vae.decode(latents(1))
    assert not vae.is_loaded


def test_rounding_is_to_the_nearest_level(folder, monkeypatch):
    vae = codec(folder)
    vae.prepare()
    levels = torch.tensor([-7.0, 0.0, 0.4, 0.6, 100.4, 100.6, 254.4, 254.6, 255.0, 300.0]).reshape(1, 1, 1, -1)
    values = levels / 127.5 - 1
    found = type("Output", (), {"sample": values})()
    monkeypatch.setattr(vae._network, "decode", lambda z: found)
    assert vae.decode(latents(1)).flatten().tolist() == [0, 0, 0, 1, 100, 101, 254, 255, 255, 255]


def test_half_precision_and_autocast_outside_leave_the_rest_alone(folder):
    half, plain = codec(folder, dtype="bf16"), codec(folder).decode(latents(2))
    assert levels_apart(half.decode(latents(2)), plain) <= 16
    assert half.encode(pictures(1)).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert levels_apart(codec(folder).decode(latents(2)), plain) == 0


def test_slices_equal_whole_batches_and_tiles_come_close(folder):
    plain = codec(folder)
    z = latents(2, size=32)
    whole = plain.decode(z)
    assert whole.shape == (2, 3, 64, 64)
    assert levels_apart(codec(folder, slicing=True).decode(z), whole) <= 1
    tiled = codec(folder, tiling=True).decode(z)
    assert tiled.shape == whole.shape
    # Each tile has a group norm and an attention of its own: a tiled picture is near the whole one, not equal to it.
    difference = (tiled.float() - whole.float()).pow(2).mean().sqrt()
    assert 0 < difference < 0.2 * whole.float().std()
    small = latents(2, size=16)
    assert levels_apart(codec(folder, tiling=True).decode(small), plain.decode(small)) == 0
    images = pictures(1, 64)
    x, tiled_x = plain.encode(images), codec(folder, tiling=True).encode(images)
    assert 0 < (x - tiled_x).pow(2).mean().sqrt() < 0.35 * x.std()


def test_a_posterior_sample_is_a_function_of_seed_and_image(folder):
    images = pictures(5)
    one = codec(folder, posterior="sample").encode(images)
    mean, std = codec(folder).moments(images)
    assert torch.equal(one, codec(folder, posterior="sample").encode(images))
    order = torch.tensor([4, 0, 2])
    again = codec(folder, posterior="sample", decode_batch_size=1).encode(images[order])
    torch.testing.assert_close(again, one[order], rtol=1e-4, atol=1e-5)
    noise = (one - mean) / std
    assert abs(float(noise.mean())) < 0.1
    assert abs(float(noise.std()) - 1) < 0.1
    assert not torch.allclose(one, codec(folder, seed=1, posterior="sample").encode(images), atol=1e-3)


def test_other_images_and_latents_are_refused(folder):
    vae, byte = codec(folder), torch.uint8
    for images in (torch.zeros(2, 3, 16, 16), torch.zeros(2, 1, 16, 16).to(byte), torch.zeros(2, 3, 15, 16).to(byte)):
        with pytest.raises(ConfigError, match="sd-vae encodes"):
            vae.encode(images)
    for x in (torch.zeros(2, 3, 8, 8), torch.zeros(2, 4), torch.zeros(2, 4, 8, 8, dtype=byte)):
        with pytest.raises(ConfigError, match="sd-vae decodes"):
            vae.decode(x)


def test_the_published_weights_are_asked_for_at_the_first_image_only(folder, monkeypatch):
    monkeypatch.setattr(sd_vae, "PUBLISHED_CONFIG", json.loads((folder / "config.json").read_text()))
    asked = []

    def weights(name):
        asked.append(name)
        return folder / sd_vae.WEIGHTS_FILE

    vae = codec(None, weights=weights, variant="ema")
    assert (asked, vae.is_loaded) == ([], False)
    for _ in range(2):
        assert levels_apart(vae.decode(latents(1)), codec(folder).decode(latents(1))) == 0
    assert (asked, vae.is_loaded) == (["sd-vae-ft-ema"], True)


def old_names(tensors):
    """As diffusers named the attention's layers when the published files were written."""
    renamed = {}
    for name, tensor in tensors.items():
        for old, new in sd_vae._OLD_ATTENTION_NAMES.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        renamed[name] = tensor
    return renamed


def test_the_published_configuration_has_the_published_number_of_weights():
    """The published file's 334,643,276 bytes are its header's and four a weight."""
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        network = AutoencoderKL.from_config(dict(sd_vae.PUBLISHED_CONFIG))
    assert sum(tensor.numel() for tensor in network.state_dict().values()) == 83_653_863


def test_files_of_early_diffusers_load(folder, tmp_path):
    renamed = old_names(load_file(folder / sd_vae.WEIGHTS_FILE))
    assert renamed.keys() != load_file(folder / sd_vae.WEIGHTS_FILE).keys()
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file(renamed, tmp_path / sd_vae.WEIGHTS_FILE)
    assert levels_apart(codec(tmp_path).decode(latents(1)), codec(folder).decode(latents(1))) == 0


def damaged(kind, folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    weights = (folder / sd_vae.WEIGHTS_FILE).read_bytes()
    if kind == "absent":
        return tmp_path / "nowhere"
    if kind == "wider":
        config["block_out_channels"] = [16, 64]
    elif kind == "other":
        config["_class_name"] = "AutoencoderTiny"
    elif kind == "impossible":
        config["norm_num_groups"] = 5
    if kind != "no config":
        (tmp_path / "config.json").write_text(json.dumps(config) if kind != "not json" else "{")
    if kind == "pickled":
        (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"")
    else:
        (tmp_path / sd_vae.WEIGHTS_FILE).write_bytes(weights[:1000] if kind == "truncated" else weights)
    return tmp_path


@pytest.mark.parametrize(
    "kind", ["absent", "no config", "not json", "other", "impossible", "wider", "truncated", "pickled"]
)
def test_weights_that_do_not_fit_are_refused(folder, tmp_path, kind):
    vae = codec(damaged(kind, folder, tmp_path))
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        vae.decode(latents(1))
    assert not vae.is_loaded


def test_without_diffusers_it_says_what_to_install_before_anything_is_downloaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    vae = codec(None, weights=lambda name: pytest.fail("downloaded for nothing"))
    with pytest.raises(ConfigError, match="pip install"):
        vae.decode(latents(1))


@pytest.mark.parametrize("there", [True, False])
def test_it_is_loaded_once_after_training_and_its_lack_costs_the_pictures_alone(
    folder, registry, manager, tmp_path, monkeypatch, there
):
    loaded = []
    load = sd_vae.load_autoencoder
    output = tmp_path / "run"

    def recorded(*arguments):
        loaded.append((output / "student.safetensors").is_file())
        return load(*arguments)

    monkeypatch.setattr("freeflow_data.sd_vae.load_autoencoder", recorded)
    choice = {"name": "sd-vae", "checkpoint": str(folder if there else tmp_path / "nowhere")}
    teacher = {"name": "gaussian-mixture", "layout": "ring", "sample_shape": [4, 8, 8]}
    config = load_run_config(registry, "distill", overrides={**TINY, "teacher": teacher, "codec": choice})
    assert api.distill(config, output=output, manager=manager).status == "finished"
    assert loaded[:1] == [True], "the weights were read before training was over"
    assert (len(loaded) == 1) or not there
    assert bool(list((output / "samples").glob("*.png"))) == there
    assert ("no checkpoint file" in (output / "report.md").read_text("utf-8")) != there
    assert api.load_student(output, manager=manager).codec.name == "sd-vae"
