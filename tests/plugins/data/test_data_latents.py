"""What `freeflow encode` writes, and the source `latents` reads."""

import json
import os
import signal
from typing import final

import numpy as np
import pytest
import torch
from freeflow_data.config import DigitsConfig, LatentsConfig, PixelsConfig
from freeflow_data.latents import LatentsSource
from freeflow_data.plain import DigitsSource, PixelCodec
from plugin_helpers import plugin
from run_helpers import TINY, finish, processes

from freeflow_core import api
from freeflow_core.config import load_run_config
from freeflow_core.errors import ConfigError, FreeflowError, Interrupted
from freeflow_core.interfaces import Codec, Source
from freeflow_core.network_file import load_tensors
from freeflow_core.plugin import Component, Manager
from freeflow_core.types import Batch

DIGITS = DigitsSource(DigitsConfig(held_out=1700))  # 97 images to train on
SMALL = {"source": "digits", "settings": ["source.held_out=1700"], "device": "cpu"}
COUNTS: dict[str, int] = {}


@final
class FuzzyCodec(Codec):
    """A posterior of mean 2 v and deviation v + 1, v the mean grey value in [0, 1] of each half of the image."""

    def __init__(self, config): ...

    def encode(self, images):
        return self.moments(images)[0]

    def moments(self, images):
        COUNTS["images"] = COUNTS.get("images", 0) + len(images)
        halves = images.float().div(255).unflatten(3, (2, -1)).mean((2, 4))
        return 2 * halves, halves + 1

    def decode(self, x):
        raise NotImplementedError


@final
class BrokenCodec(Codec):
    def __init__(self, config): ...

    def encode(self, images):
        return images.float() * 1000

    decode = encode


@final
class EndlessSource(Source):
    """Two conditions an image, and no number of images."""

    def __init__(self, config): ...

    def batches(self, start, batch_size, rank, world_size):
        while True:
            number = torch.arange(start, start + batch_size)
            images = number.to(torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
            yield Batch(images, {"digit": number, "pair": torch.stack([number, -number], 1)})
            start += batch_size

    def held_out(self):
        return None


@pytest.fixture
def extended():
    manager = Manager.load()
    codecs = [
        Component(name, f"{__name__}:{target}", "freeflow_data.config:PixelsConfig", name)
        for name, target in (("fuzzy", "FuzzyCodec"), ("broken", "BrokenCodec"))
    ]
    endless = Component("endless", f"{__name__}:EndlessSource", "freeflow_data.config:PriorConfig", "endless")
    manager.register(plugin(codecs=codecs, sources=[endless]), "extra")
    COUNTS.clear()
    return manager


@pytest.fixture
def encode(folder, extended):
    """``encode(codec, **options)``: the digits as latents in ``folder``, if nothing else is said."""

    def make(codec="fuzzy", **options):
        return api.encode(**{**SMALL, "codec": codec, "output": folder, "manager": extended, **options})

    return make


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "l"


def latents(path, **options):
    return LatentsSource(LatentsConfig.model_validate({"path": path, **options}))


def first(source, num):
    batch = next(source.batches(0, num, 0, 1))
    return batch.x, batch.condition


def in_order(source, num=97):
    batch = source.read(np.arange(num), np.arange(num))
    return batch.x, batch.condition


@pytest.mark.parametrize(("batch_size", "shard_size"), [(32, 40), (200, 4096)])
def test_pixels_come_back_exactly_with_their_labels(folder, encode, batch_size, shard_size):
    done = encode("pixels", batch_size=batch_size, shard_size=shard_size)
    assert (done.num_images, done.written, done.state_shape) == (97, 97, (1, 8, 8))
    assert done.num_shards == len(list(folder.glob("*.safetensors"))) == -(-97 // shard_size)
    source = latents(folder)
    assert (source.encoded_by, source.num_images, source.num_classes) == ("pixels", 97, 10)
    assert (source.image_shape, source.held_out(), source.training_images()) == ((1, 8, 8), None, None)
    x, labels = in_order(source)
    images, expected_labels = first(DIGITS, 97)
    assert x.dtype == torch.float32
    assert torch.equal(x, PixelCodec(PixelsConfig()).encode(images))
    assert torch.equal(labels, expected_labels)


def test_a_posterior_is_drawn_anew_for_each_image_and_epoch(folder, encode):
    encode()
    mean, deviation = FuzzyCodec(PixelsConfig()).moments(first(DIGITS, 97)[0])
    assert torch.equal(in_order(latents(folder, sample=False))[0], mean)
    source = latents(folder)
    rows = np.arange(97)
    draws = torch.stack([source.read(rows, rows + 97 * epoch).x for epoch in range(300)])
    standard = (draws - mean) / deviation
    assert float(standard.mean()) == pytest.approx(0, abs=0.02)
    assert float(standard.std()) == pytest.approx(1, abs=0.02)
    assert float((standard[:, 0] * standard[:, 1]).mean()) == pytest.approx(0, abs=0.15)
    again = next(latents(folder).batches(500, 13, 0, 1)).x
    assert torch.equal(next(source.batches(500, 13, 0, 1)).x, again)
    assert not torch.equal(next(latents(folder, seed=1).batches(500, 13, 0, 1)).x, again)


def test_mirrored_copies_are_taken_for_half_the_images(folder, encode, tmp_path):
    encode(flip=True, shard_size=30)
    mean = in_order(latents(folder, sample=False, flip=False))[0]
    mixed = in_order(latents(folder, sample=False))[0]
    mirrored = (mixed == mean.flip(-1)).all((1, 2))
    kept = (mixed == mean).all((1, 2))
    assert bool((mirrored | kept).all())
    assert 30 < int((mirrored & ~kept).sum()) < 67
    encode(num=5, output=tmp_path / "plain")
    with pytest.raises(ConfigError, match="no mirrored copies"):
        latents(tmp_path / "plain", flip=True)


def test_half_precision_is_stored_small_and_read_as_float32(folder, encode):
    encode(dtype="float16", num=11)
    assert load_tensors(folder / "shard-000000.safetensors")[0]["mean"].dtype == torch.float16
    x = in_order(latents(folder, sample=False), 11)[0]
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, FuzzyCodec(PixelsConfig()).encode(first(DIGITS, 11)[0]), rtol=1e-3, atol=1e-4)


def test_several_conditions_travel_by_name(folder, encode):
    encode("pixels", source="endless", settings=[], num=9, shard_size=4)
    batch = latents(folder).read(np.array([8, 0, 3]), np.arange(3))
    assert batch.condition["digit"].tolist() == [8, 0, 3]
    assert batch.condition["pair"].tolist() == [[8, -8], [0, 0], [3, -3]]


def stop_after(count):
    def progress(done, total):
        if done >= count:
            os.kill(os.getpid(), signal.SIGINT)

    return progress


def test_an_interrupted_job_keeps_whole_shards_and_goes_on(folder, encode, tmp_path):
    small = {"batch_size": 5, "shard_size": 20}
    with pytest.raises(Interrupted, match="40 of 97 images done"):
        encode(**small, on_progress=stop_after(45))
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["manifest.json", "shard-000000.safetensors", "shard-000001.safetensors"]
    with pytest.raises(ConfigError, match="not complete"):
        latents(folder)
    COUNTS.clear()
    told = []
    done = encode(**small, on_progress=lambda *pair: told.append(pair))
    assert COUNTS["images"] == done.written == 57
    assert (told[0], told[-1]) == ((40, 97), (97, 97))
    encode(**{**small, "batch_size": 64}, output=tmp_path / "whole")
    for path in (tmp_path / "whole").glob("*.safetensors"):
        assert path.read_bytes() == (folder / path.name).read_bytes()
    COUNTS.clear()
    assert encode(**small).written == 0
    assert not COUNTS


def test_another_job_or_other_files_are_left_alone(folder, encode, tmp_path):
    encode("pixels")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for change, shown in (
        ({"flip": True}, "flip: "),
        ({"settings": ["source.held_out=1690"]}, "num_images: 97 -> 107"),
        ({"dtype": "float16"}, "dtype: "),
    ):
        with pytest.raises(ConfigError, match=f"another job. Changed: {shown}"):
            encode("pixels", **change)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    for output, message in ((tmp_path / "other", "other files"), (tmp_path / "other" / "thesis.tex", "is a file")):
        with pytest.raises(ConfigError, match=message):
            encode("pixels", output=output)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"source": "endless", "settings": []}, "--num N"),
        ({"num": 98}, "'digits' has 97"),
        ({"source": "prior", "settings": []}, "yields no images"),
        ({"settings": ["teacher.x=1"]}, "there is no 'teacher' here"),
        ({"batch_size": 0}, "at least 1"),
        ({"codec": "broken", "dtype": "float16"}, "not finite or do not fit float16"),
    ],
)
def test_what_cannot_be_encoded_is_refused(folder, encode, options, expected):
    with pytest.raises(FreeflowError, match=expected):
        encode(**{"codec": "pixels", **options})
    assert not list(folder.glob("shard*"))


def test_missing_and_damaged_shards_are_named_skipped_and_made_anew(folder, encode, caplog):
    encode("pixels", shard_size=20)
    whole = in_order(latents(folder))[0]
    (folder / "shard-000001.safetensors").unlink()
    damaged = folder / "shard-000003.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r"2 of 5 shards .*shard-000001.*shard-000003"):
        latents(folder)
    rest = in_order(latents(folder, on_error="skip"), 57)[0]
    assert torch.equal(rest, torch.cat([whole[:20], whole[40:60], whole[80:]]))
    assert "They are left out." in caplog.text
    with pytest.raises(FreeflowError, match="was damaged and is removed now"):
        encode("pixels", shard_size=20)
    assert encode("pixels", shard_size=20).written == 20
    assert torch.equal(in_order(latents(folder))[0], whole)


def test_a_run_takes_states_as_they_are(folder, encode, registry, manager, monkeypatch):
    encode("pixels")
    monkeypatch.setattr(PixelCodec, "encode", lambda *_: pytest.fail("encoded again"))
    overrides = TINY | {
        "teacher": None,
        "student": {"name": "velocity-transformer", "width": 16, "depth": 1, "num_heads": 2, "patch_size": 4},
        "objective": "flow-matching",
        "source": {"name": "latents", "path": str(folder)},
    }
    output = folder.with_name("run")
    config = load_run_config(registry, "pretrain", overrides={**overrides, "codec": "sd-vae"})
    with pytest.raises(ConfigError, match=r"made by the codec 'pixels', but .* 'sd-vae'"):
        api.pretrain(config, output=output, manager=manager)
    assert not output.exists()
    config = load_run_config(registry, "pretrain", overrides=overrides)
    assert api.pretrain(config, output=output, manager=manager).status == "finished"
    with pytest.raises(ConfigError, match="yields states of the codec 'pixels' already"):
        encode("pixels", source="latents", settings=[f"source.path={folder}"], output=folder.with_name("again"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "no latents in"),
        ("{", "cannot be used"),
        ('{"format": "freeflow-latents", "version": 2}', "version: "),
        ('{"format": "freeflow-latents", "version": 1}', "shards: "),
    ],
)
def test_a_folder_without_a_sound_manifest_is_refused(tmp_path, text, expected):
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ConfigError, match=expected):
        latents(tmp_path)


@pytest.mark.long
def test_two_processes_write_what_one_does(tmp_path, encode):
    arguments = ("--source", "digits", "--codec", "pixels", "--set", "source.held_out=1700", "--shard-size", "10")
    two = ("--output", tmp_path / "two", "--device", "cpu")
    printed = finish(processes(2, "-m", "freeflow_cli", "encode", *arguments, *two))
    assert printed.count("97 latents of 1 x 8 x 8 in 10 shards.") == 1
    encode("pixels", shard_size=10, output=tmp_path / "one")
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {path.name for path in (tmp_path / "two").iterdir()}
    for name in names - {"manifest.json"}:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    manifests = [json.loads((tmp_path / side / "manifest.json").read_text()) for side in ("one", "two")]
    assert manifests[0] == manifests[1]
    assert manifests[0]["complete"] is True
    assert manifests[0]["shards"]["shard-000009.safetensors"] == 7
