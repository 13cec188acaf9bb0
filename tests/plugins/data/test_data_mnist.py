import gzip
import logging
from itertools import islice

import numpy as np
import pytest
import torch
from freeflow_data.config import MNISTConfig
from freeflow_data.mnist import MNISTSource, read_idx
from tiny_files import idx, write_mnist

from freeflow_core.errors import ConfigError

PARTS = {"train": 40, "t10k": 20}


def images_of(part):
    number = np.arange(PARTS[part], dtype=np.uint8)
    return np.broadcast_to(number[:, None, None] + (100 if part == "t10k" else 0), (PARTS[part], 6, 5)).copy()


@pytest.fixture
def folder(tmp_path):
    """Four small files; image i shows the value i (plus 100 in the test part) and has the class i % 10."""
    write_mnist(tmp_path, **{part: images_of(part) for part in PARTS})
    return tmp_path


def build(folder, **options):
    return MNISTSource(MNISTConfig.model_validate({"path": folder, **options}))


def shown(pair):
    images, labels = pair
    assert (images.dtype, images.shape[1:]) == (torch.uint8, (1, 6, 5))
    numbers = images[:, 0, 0, 0].long()
    assert torch.equal(labels, numbers % 100 % 10)
    return numbers.tolist()


def test_training_and_test_files_become_training_and_held_out_images(folder):
    source = build(folder)
    assert (source.image_shape, source.num_classes, source.num_images) == ((1, 6, 5), 10, 40)
    assert shown(source.training_images()) == list(range(40))
    assert shown(source.held_out()) == list(range(100, 120))
    batches = list(islice(source.batches(0, 10, 0, 1), 4))
    assert sorted(n for b in batches for n in shown((b.x, b.condition))) == list(range(40))


@pytest.mark.parametrize("rename", [lambda n: f"{n}.gz", lambda n: n.replace("-idx", ".idx")])
def test_files_may_be_compressed_or_spelt_with_a_dot(folder, rename):
    for path in list(folder.iterdir()):
        content = path.read_bytes()
        path.unlink()
        other = folder / rename(path.name)
        other.write_bytes(gzip.compress(content) if other.suffix == ".gz" else content)
    assert shown(build(folder).training_images()) == list(range(40))


def test_a_share_of_the_training_files_may_be_held_out_instead(folder):
    for path in folder.glob("t10k*"):
        path.unlink()  # not needed then
    source = build(folder, held_out=10)
    held, kept = shown(source.held_out()), shown(source.training_images())
    assert sorted(n % 10 for n in held) == list(range(10))
    assert sorted(held + kept) == list(range(40))
    assert shown(build(folder, held_out=10, split_seed=1).held_out()) != held
    assert build(folder, held_out=0).held_out() is None


@pytest.mark.parametrize("compressed", [False, True])
def test_a_truncated_file_is_refused_or_gives_its_whole_images(folder, compressed, caplog):
    path = folder / "train-images-idx3-ubyte"
    if compressed:
        noise = np.random.default_rng(0).integers(0, 256, (40, 6, 5), dtype=np.uint8)
        packed = gzip.compress(idx(noise))
        path.unlink()
        (folder / f"{path.name}.gz").write_bytes(packed[: len(packed) // 2])
        usable = len(read_idx(folder / f"{path.name}.gz", 3).values)
        assert 5 < usable < 35
    else:
        path.write_bytes(path.read_bytes()[: 16 + 30 * 25 + 7])
        usable = 25
    with pytest.raises(ConfigError) as caught:
        build(folder)
    assert f"{40 - usable} of 40 images cannot be used" in str(caught.value)
    with caplog.at_level(logging.WARNING, "freeflow"):
        source = build(folder, on_error="skip")
    assert source.num_images == usable
    assert "They are left out." in caplog.text


def test_labels_out_of_range_are_counted_and_named(folder):
    labels = np.arange(40, dtype=np.uint8) % 10
    labels[[3, 7, 9, 30]] = (10, 255, 10, 11)
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(labels))
    with pytest.raises(ConfigError, match=r"4 of 40 .*number 3: 10, number 7: 255"):
        build(folder)
    assert shown(build(folder, on_error="skip").training_images()) == sorted(set(range(40)) - {3, 7, 9, 30})


@pytest.mark.parametrize(
    ("spoilt", "on_error", "expected"),
    [
        (lambda images, labels: labels, "refuse", "it begins with 0x00000801"),
        (lambda images, labels: images[:8], "refuse", "it holds 8 bytes"),
        (lambda images, labels: images[:4] + b"\xff" * 4 + images[8:], "refuse", "or a label: 4,294,967,255"),
        (lambda images, labels: images + b"x", "skip", "1,201 bytes after its header, which promises 40 x 30"),
    ],
)
def test_files_that_cannot_be_used_are_refused(folder, spoilt, on_error, expected):
    images, labels = folder / "train-images-idx3-ubyte", folder / "train-labels-idx1-ubyte"
    images.write_bytes(spoilt(images.read_bytes(), labels.read_bytes()))
    with pytest.raises(ConfigError, match=expected):
        build(folder, on_error=on_error)


def test_missing_damaged_and_different_files_are_refused(folder):
    images, labels = folder / "train-images-idx3-ubyte", folder / "train-labels-idx1-ubyte"
    packed = bytearray(gzip.compress(images.read_bytes()))
    packed[-8] ^= 1
    images.rename(folder / "kept")
    (folder / f"{images.name}.gz").write_bytes(packed)
    with pytest.raises(ConfigError, match="incorrect data check"):
        build(folder, on_error="skip")
    (folder / "kept").rename(images)
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx(np.zeros((20, 28, 28), np.uint8)))
    with pytest.raises(ConfigError, match=r"\(1, 28, 28\), the training images \(1, 6, 5\)"):
        build(folder)
    labels.unlink()
    with pytest.raises(ConfigError, match="no train-labels-idx1-ubyte"):
        build(folder)
