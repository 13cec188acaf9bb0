from types import SimpleNamespace

import pytest
from plugin_helpers import plugin

from freeflow_core.plugin import Component


@pytest.fixture
def calls(manager, api, monkeypatch):
    """What `freeflow encode` asks of the api, which here encodes 8 images without any work."""
    photos = Component("photos", "nowhere:Photos", "nowhere:PhotosConfig", "photos")
    vae = Component("sd-vae", "nowhere:VAE", "nowhere:VAEConfig", "vae")
    manager.register(plugin(sources=[photos], codecs=[vae]), "photos-plugin")
    found = []

    def encode(**arguments):
        found.append(arguments)
        if api.failure is not None:
            raise api.failure
        for done in (0, 4, 8):
            arguments["on_progress"](done, 8)
        return SimpleNamespace(
            folder=arguments["output"], num_images=8, num_shards=2, state_shape=(4, 2, 2), written=8, seconds=1.0
        )

    monkeypatch.setattr(api, "encode", encode, raising=False)
    return found


def test_cli_encode_passes_its_options_and_says_what_is_there(freeflow, calls, tmp_path):
    result = freeflow(
        "encode", "--source", "photos", "--set", "source.path=here", "--set", "codec.variant=ema", "--num", "8",
        "--flip", "--batch-size", "3", "--shard-size", "4", "--dtype", "float16", "--device", "cpu",
        "--output", str(tmp_path),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    arguments = calls[0]
    assert (arguments["source"], arguments["codec"], arguments["output"]) == ("photos", "sd-vae", tmp_path)
    assert arguments["settings"] == ("source.path=here", "codec.variant=ema")
    assert (arguments["num"], arguments["flip"], arguments["dtype"]) == (8, True, "float16")
    assert (arguments["batch_size"], arguments["shard_size"], arguments["device"]) == (3, 4, "cpu")
    assert "8 latents of 4 x 2 x 2 in 2 shards." in result.stdout
    assert "encode: 8/8 images (100%)" in result.stderr
    settings = f"--set source.path={tmp_path} --set codec=sd-vae --set codec.variant=ema"
    assert f"freeflow pretrain --source latents {settings}" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "Nothing to encode. Name the images: --source image-folder"),
        (("--source", "fotos"), "Did you mean 'photos'?"),
        (("--source", "photos", "--codec", "vae"), "Unknown codec 'vae'"),
    ],
)
def test_cli_encode_refuses_bad_requests_before_torch(freeflow, calls, arguments, expected):
    result = freeflow("encode", *arguments)
    assert result.exit_code == 2
    assert expected in result.stderr
    assert calls == []


def test_cli_encode_is_silent_on_all_but_the_main_process(freeflow, calls, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    result = freeflow("encode", "--source", "photos")
    assert result.exit_code == 0
    assert result.output == ""
