import logging

import numpy as np
import pytest
import torch
from freeflow_data.config import NpzConfig
from freeflow_data.npz import NpzSource, open_array

from freeflow_core.errors import ConfigError

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(30) % 4


def build(path, **options):
    return NpzSource(NpzConfig.model_validate({"path": path, **options}))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data.npz"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_and_labels_come_back_whether_mapped_or_loaded(path, save):
    save(path, arr_0=IMAGES, arr_1=LABELS)
    source = build(path)
    assert (source.image_shape, source.num_classes, source.num_images) == ((3, 6, 5), 4, 30)
    images, labels = source.training_images()
    assert torch.equal(images, torch.from_numpy(IMAGES).permute(0, 3, 1, 2))
    assert labels.tolist() == LABELS.tolist()
    assert isinstance(open_array(path, "arr_0"), np.memmap) == (save is np.savez)


def test_a_mapped_array_reads_any_order_and_several_arrays(path):
    ordered = {"a": np.arange(12.0).reshape(3, 4), "b": np.asfortranarray(IMAGES), "c": np.arange(5, dtype=np.int8)}
    np.savez(path, **ordered)
    for name, expected in ordered.items():
        found = open_array(path, name)
        assert isinstance(found, np.memmap)
        assert np.array_equal(found, expected)


def test_names_are_options(path):
    np.savez(path, photos=IMAGES, kinds=LABELS, arr_0=IMAGES[:2])
    source = build(path, images="photos", labels="kinds")
    assert (source.num_images, source.num_classes) == (30, 4)
    assert build(path).num_images == 2
    assert build(path, images="photos").num_classes is None


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((2, 6, 5), "auto", (1, 6, 5)),
        ((2, 6, 5, 1), "auto", (1, 6, 5)),
        ((2, 3, 6, 5), "auto", (3, 6, 5)),
        ((2, 3, 6, 3), "nchw", (3, 6, 3)),
        ((2, 3, 6, 3), "nhwc", (3, 3, 6)),
    ],
)
def test_layouts(path, shape, layout, expected):
    values = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    np.savez(path, x=values)
    images = build(path, layout=layout).training_images()[0]
    assert tuple(images.shape[1:]) == expected
    if expected != (3, 3, 6):
        assert np.array_equal(images.numpy().ravel(), values.ravel())


def test_labels_out_of_range_and_without_images_are_counted_and_skipped(path, caplog):
    labels = np.concatenate([LABELS[:-5], np.zeros(10, int)])  # five more than images
    labels[[2, 4]] = (-1, 9)
    np.savez(path, x=IMAGES, y=labels)
    with pytest.raises(ConfigError, match=r"7 of 35 images cannot be used.*row 2: -1, row 4: 9"):
        build(path, num_classes=4)
    with caplog.at_level(logging.WARNING, "freeflow"):
        source = build(path, num_classes=4, on_error="skip")
    assert source.num_images == 28
    images = source.training_images()[0]
    assert torch.equal(images, torch.from_numpy(np.delete(IMAGES, [2, 4], 0)).permute(0, 3, 1, 2))
    assert "7 of 35" in caplog.text


def no_images(*shape, dtype=np.uint8):
    return {"x": np.zeros(shape, dtype)}


@pytest.mark.parametrize(
    ("arrays", "options", "expected"),
    [
        (no_images(2, 3, 6, 3), {}, "The array 'x'"),  # channels second or last
        (no_images(2, 4, 4, 4), {}, "The array 'x'"),
        (no_images(2, 6, 5, 3), {"layout": "nchw"}, "The array 'x'"),
        (no_images(2, 6, 5, 3, dtype=np.float32), {}, "The array 'x'"),
        (no_images(0, 6, 5, 3), {}, "The array 'x'"),
        ({"x": IMAGES, "y": np.eye(4)[LABELS]}, {}, "one integer label an image"),
        ({"x": IMAGES, "y": LABELS.astype(float)}, {}, "one integer label an image"),
        ({"x": np.array([{"a": 1}], dtype=object)}, {}, "cannot be read"),  # Python objects are never loaded
        ({"photos": IMAGES}, {}, "no array named images, x or arr_0; it holds photos"),
        ({"photos": IMAGES}, {"images": "photo"}, "Did you mean 'photos'"),
        ({"x": IMAGES}, {"held_out": 30}, "held_out=30 of 30"),
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_cannot_be_used_is_refused(path, save, arrays, options, expected):
    save(path, **arrays)
    with pytest.raises(ConfigError, match=expected):
        build(path, **options)


def test_missing_cut_off_and_damaged_files_are_refused(path):
    with pytest.raises(ConfigError, match=r"data\.npz cannot be read: .*No such file"):
        build(path)
    np.savez_compressed(path, x=IMAGES)
    content = bytearray(path.read_bytes())
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError, match="cut off"):
        build(path)
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"The array 'x' of .* cannot be read"):
        build(path)
