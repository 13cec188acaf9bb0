from __future__ import annotations

import gzip
import logging
import struct
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from freeflow_data.config import MNISTConfig
from freeflow_data.mnist import MNISTSource, read_idx

from freeflow_core.errors import ConfigError

PARTS = {"train": 40, "t10k": 20}
REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "mnist"


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def images_of(part: str) -> np.ndarray:
    number = np.arange(PARTS[part], dtype=np.uint8)
    return np.broadcast_to(number[:, None, None] + (100 if part == "t10k" else 0), (PARTS[part], 6, 5)).copy()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four small files; image i shows the value i (plus 100 in the test part) and has the class i % 10."""
    for part, size in PARTS.items():
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(images_of(part)))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(size, dtype=np.uint8) % 10))
    return tmp_path


def build(folder: Path, **options: Any) -> MNISTSource:
    return MNISTSource(MNISTConfig.model_validate({"path": folder, **options}))


def shown(pair: Any) -> list[int]:
    assert pair is not None
    images, labels = pair
    assert images.dtype == torch.uint8
    assert images.shape[1:] == (1, 6, 5)
    numbers = images[:, 0, 0, 0].long()
    assert torch.equal(labels, numbers % 100 % 10)
    return numbers.tolist()


def test_training_and_test_files_become_training_and_held_out_images(folder: Path) -> None:
    source = build(folder)
    assert (source.image_shape, source.num_classes, source.num_images) == ((1, 6, 5), 10, 40)
    assert shown(source.training_images()) == list(range(40))
    assert shown(source.held_out()) == list(range(100, 120))
    batches = list(islice(source.batches(0, 10, 0, 1), 4))
    assert sorted(n for b in batches for n in shown((b.x, b.condition))) == list(range(40))


@pytest.mark.parametrize("rename", [lambda n: f"{n}.gz", lambda n: n.replace("-idx", ".idx")])
def test_files_may_be_compressed_or_spelt_with_a_dot(folder: Path, rename: Any) -> None:
    for path in list(folder.iterdir()):
        content = path.read_bytes()
        path.unlink()
        other = folder / rename(path.name)
        other.write_bytes(gzip.compress(content) if other.suffix == ".gz" else content)
    assert shown(build(folder).training_images()) == list(range(40))


def test_a_share_of_the_training_files_may_be_held_out_instead(folder: Path) -> None:
    for path in folder.glob("t10k*"):
        path.unlink()  # not needed then
    source = build(folder, held_out=10)
    held, kept = shown(source.held_out()), shown(source.training_images())
    assert sorted(n % 10 for n in held) == list(range(10))
    assert sorted(held + kept) == list(range(40))
    assert shown(build(folder, held_out=10, split_seed=1).held_out()) != held
    assert build(folder, held_out=0).held_out() is None


def test_a_missing_folder_or_file_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Nothing is downloaded"):
        build(tmp_path / "nowhere")
    (folder / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(ConfigError, match="no train-labels-idx1-ubyte"):
        build(folder)


def test_mixed_up_files_are_told_by_their_magic_number(folder: Path) -> None:
    (folder / "train-images-idx3-ubyte").write_bytes((folder / "train-labels-idx1-ubyte").read_bytes())
    with pytest.raises(ConfigError, match="it begins with 0x00000801"):
        build(folder)


@pytest.mark.parametrize("content", [b"", b"\0\0", b"\0\0\x08\x03\0\0\0\x05"])
def test_a_file_without_a_whole_header_is_refused(folder: Path, content: bytes) -> None:
    (folder / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(ConfigError, match=f"it holds {len(content)} bytes"):
        build(folder)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_truncated_file_is_refused_or_gives_its_whole_images(
    folder: Path, compressed: bool, caplog: pytest.LogCaptureFixture
) -> None:
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


def test_labels_out_of_range_are_counted_and_named(folder: Path) -> None:
    labels = np.arange(40, dtype=np.uint8) % 10
    labels[[3, 7, 9, 30]] = (10, 255, 10, 11)
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(labels))
    with pytest.raises(ConfigError, match=r"4 of 40 .*number 3: 10, number 7: 255"):
        build(folder)
    assert shown(build(folder, on_error="skip").training_images()) == sorted(set(range(40)) - {3, 7, 9, 30})


def test_a_header_that_promises_billions_costs_nothing(folder: Path) -> None:
    content = bytearray((folder / "train-images-idx3-ubyte").read_bytes())
    content[4:8] = b"\xff\xff\xff\xff"
    (folder / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(ConfigError, match=r"without an image or a label: 4,294,967,255"):
        build(folder)


def test_more_bytes_than_promised_are_refused(folder: Path) -> None:
    with (folder / "train-images-idx3-ubyte").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ConfigError, match=r"1,201 bytes after its header, which promises 40 x 30"):
        build(folder, on_error="skip")


def test_a_wrong_checksum_is_refused_even_when_bad_images_are_skipped(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte"
    packed = bytearray(gzip.compress(path.read_bytes()))
    packed[-8] ^= 1
    path.unlink()
    (folder / f"{path.name}.gz").write_bytes(packed)
    with pytest.raises(ConfigError, match=r"CRC check failed.*copy it again"):
        build(folder, on_error="skip")


def test_test_images_of_another_size_are_refused(folder: Path) -> None:
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx(np.zeros((20, 28, 28), np.uint8)))
    with pytest.raises(ConfigError, match=r"\(1, 28, 28\), the training images \(1, 6, 5\)"):
        build(folder)


@pytest.mark.skipif(not REAL.is_dir(), reason="MNIST is not beside this checkout")
def test_the_real_files() -> None:
    source = build(REAL)
    images, labels = source.training_images()
    assert images.shape == (60_000, 1, 28, 28)
    assert labels[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]
    assert float(images.float().mean()) == pytest.approx(33.318, abs=1e-3)
    held = source.held_out()
    assert held is not None
    assert len(held[0]) == 10_000
