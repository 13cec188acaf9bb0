import gc
import logging
import threading
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from freeflow_data.config import ImageFolderConfig
from freeflow_data.image_file import UnusableImage, centre_crop, read_header
from freeflow_data.image_folder import ImageFolderSource
from PIL import Image

from freeflow_core.errors import ConfigError

RANDOM = np.random.default_rng(0)


def build(path, **options):
    return ImageFolderSource(ImageFolderConfig.model_validate({"path": path, **options}))


def paint(path, value=0, size=(8, 8), mode="RGB"):
    """One colour, exact in every format used here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (value, value, value) if mode == "RGB" else value).save(path, lossless=True, quality=100)
    return path


def noise(path, size=(32, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RANDOM.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Two classes of ten; each image has a grey value of its own, birds from 100 on."""
    for i in range(10):
        suffix = ("png", "jpg", "webp", "bmp", "jpeg")[i % 5]
        paint(tmp_path / "pictures" / "cats" / f"{i}.{suffix}", 5 * i)
        paint(tmp_path / "pictures" / "birds" / "deep" / f"{i}.{suffix.upper()}", 100 + 5 * i)
    return tmp_path / "pictures"


def everything(source):
    images, labels = source.training_images()
    return images[:, 0, 0, 0].tolist(), labels.tolist() if labels is not None else None


def test_sub_folders_are_classes_by_name_at_any_depth(folder):
    source = build(folder)
    assert (source.image_shape, source.num_classes, source.num_images) == ((3, 8, 8), 2, 20)
    values, labels = everything(source)
    assert sorted(values) == [*range(0, 50, 5), *range(100, 150, 5)]
    assert labels == [int(value < 100) for value in values]  # birds, cats


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_hold_the_same_images_whatever_the_threads(folder, workers):
    sources = (build(folder, workers=workers, augment=["shift"]), build(folder, workers=7, augment=["shift"]))
    batches = [list(islice(source.batches(3, 6, 1, 2), 8)) for source in sources]
    for first, second in zip(*batches, strict=True):
        assert first.x.dtype == torch.uint8
        assert torch.equal(first.x, second.x)
        assert torch.equal(first.condition, second.condition)


def test_threads_end_with_their_iterator(folder):
    stream = build(folder).batches(0, 4, 0, 1)
    next(stream)
    assert any(thread.name.startswith("freeflow-data") for thread in threading.enumerate())
    stream.close()
    gc.collect()
    for thread in threading.enumerate():
        if thread.name.startswith("freeflow-data"):
            thread.join(10)
            assert not thread.is_alive()


def test_a_flat_folder_is_unlabelled_and_hidden_files_are_passed_over(tmp_path):
    paint(tmp_path / "a.png")
    paint(tmp_path / ".thumbnails" / "b.png")
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "notes.txt").touch()
    source = build(tmp_path)
    assert (source.num_images, source.num_classes) == (1, None)
    assert next(source.batches(0, 3, 0, 1)).condition is None


def test_a_link_back_up_is_not_followed_forever(folder):
    (folder / "cats" / "up").symlink_to(folder)
    assert build(folder, labels="none").num_images == 20


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "file,label\nb.png,7\na.png,2\nsub/c.png,0\n"),
        ("labels.csv", "\ufefflabel,split,filename\n2,x,a.png\n7,x,b.png\n0,x,sub/c.png\n"),
        ("labels.json", '{"labels": [["a.png", 2], ["b.png", 7], ["sub/c.png", 0]]}'),
        ("labels.json", '{"a.png": 2, "b.png": "7", "sub/c.png": 0}'),
    ],
)
def test_labels_from_a_file(tmp_path, name, text):
    root = tmp_path / "pictures"
    for place, file in enumerate(("a.png", "b.png", "sub/c.png")):
        paint(root / file, 10 * place)
    (tmp_path / name).write_text(text, "utf-8")
    source = build(root, labels=str(tmp_path / name))
    assert everything(source) == ([0, 10, 20], [2, 7, 0])
    assert source.num_classes == 8
    assert build(root, labels=str(tmp_path / name), num_classes=11).num_classes == 11


def test_labels_that_are_names_are_numbered_by_name(tmp_path):
    for file in ("a.png", "b.png", "c.png"):
        paint(tmp_path / file)
    (tmp_path / "labels.csv").write_text("a.png,zebra\nb.png,10\nc.png,9\n")
    source = build(tmp_path, labels=str(tmp_path / "labels.csv"))
    assert everything(source)[1] == [2, 0, 1]
    assert source.num_classes == 3


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_cut_off_and_foreign_files_are_found_by_their_headers(tmp_path, suffix):
    path = noise(tmp_path / f"a.{suffix}")
    assert read_header(path).size == (32, 32)
    whole = path.read_bytes()
    for content, reason in (
        (whole[: len(whole) * 2 // 3], "damaged or cut off"),
        (b"", "empty"),
        (b"hello, world", "not PNG, JPEG"),
        (whole[:9], "cut off|not PNG"),
    ):
        path.write_bytes(content)
        with pytest.raises(UnusableImage, match=reason):
            read_header(path)


def test_bad_images_are_counted_named_and_skipped(folder, caplog):
    for number in range(4):
        (folder / "cats" / f"empty{number}.png").touch()
    (folder / "birds" / "cut.png").write_bytes(noise(folder / "birds" / "cut.png", (8, 8)).read_bytes()[:100])
    with pytest.raises(ConfigError, match=r"5 of 25.*cut off: 1 \(birds/cut.*empty: 4 \(cats/empty0.* and 1 more"):
        build(folder)
    with caplog.at_level(logging.WARNING, "freeflow"):
        source = build(folder, on_error="skip")
    assert source.num_images == 20
    assert "cats/empty0.png" in caplog.text


def test_damage_inside_needs_decoding_to_be_found(folder):
    path = noise(folder / "cats" / "noisy.png", (8, 8))
    content = bytearray(path.read_bytes())
    content[60] ^= 0xFF
    path.write_bytes(content)
    source = build(folder)
    with pytest.raises(ConfigError, match=r"noisy\.png cannot be decoded"):
        list(islice(source.batches(0, 7, 0, 1), 3))
    with pytest.raises(ConfigError, match=r"noisy\.png"):
        build(folder, check="decode")
    assert build(folder, check="decode", on_error="skip").num_images == 20


def test_without_a_check_the_first_good_image_speaks_for_all(folder):
    (folder / "birds" / "a.png").touch()
    with pytest.raises(ConfigError, match=r"1 of 21 .*birds/a\.png"):
        build(folder, check="none")
    paint(folder / "cats" / "z.png", 1, (9, 8))
    source = build(folder, check="none", on_error="skip")
    assert (source.num_images, source.image_shape) == (21, (3, 8, 8))
    with pytest.raises(ConfigError, match=r"z\.png is \(3, 8, 9\), the others \(3, 8, 8\)"):
        source.training_images()


def test_mixed_sizes_are_refused_skipped_or_resized(folder):
    paint(folder / "cats" / "wide.png", 200, (12, 8))
    paint(folder / "cats" / "tall.png", 200, (8, 30))
    with pytest.raises(ConfigError, match=r"2 \(cats/tall.png: 8 x 30, cats/wide.png: 12 x 8\)"):
        build(folder)
    assert build(folder, on_error="skip").num_images == 20
    resized = build(folder, size=6)
    assert (resized.num_images, resized.image_shape) == (22, (3, 6, 6))
    assert sorted(everything(resized)[0]) == sorted([*everything(build(folder, on_error="skip"))[0], 200, 200])


def test_channels_follow_the_images_unless_set(tmp_path):
    paint(tmp_path / "grey.png", 40, mode="L")
    paint(tmp_path / "bits.png", 1, mode="1")
    assert build(tmp_path).image_shape == (1, 8, 8)
    assert sorted(everything(build(tmp_path))[0]) == [40, 255]
    assert build(tmp_path, channels=3).image_shape == (3, 8, 8)
    paint(tmp_path / "colour.png", 80)
    assert build(tmp_path).image_shape == (3, 8, 8)
    assert sorted(everything(build(tmp_path, channels=1))[0]) == [40, 80, 255]


def test_adm_halves_with_a_box_filter_before_it_resizes():
    # A fine chequerboard of 0 and 200: box halving gives exactly its mean, everywhere.
    board = Image.fromarray((np.indices((64, 96)).sum(0) % 2 * 200).astype(np.uint8))
    for size in (32, 16, 20):
        cropped = np.asarray(centre_crop(board, size, "adm"))
        assert cropped.shape == (size, size)
        assert (cropped == 100).all()


@pytest.mark.parametrize("resize", ["adm", "bicubic", "lanczos"])
def test_the_middle_of_the_longer_side_is_kept(resize):
    wide = np.zeros((40, 120), np.uint8)
    wide[:, 40:80] = 250
    tall = Image.fromarray(wide.T.copy())
    for image in (Image.fromarray(wide), tall):
        cropped = np.asarray(centre_crop(image, 30, resize))
        assert cropped.shape == (30, 30)
        assert (cropped[3:-3, 3:-3] > 240).all()


def write(path, text=""):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, "utf-8")


Mistake = tuple[Callable[[Path], object], dict[str, Any], str]
MISTAKES: dict[str, Mistake] = {
    "no folder": (lambda f: f.rename(f.with_name("other")), {}, "There is no folder"),
    "no image": (lambda f: [path.rename(path.with_suffix(".tif")) for path in f.glob("**/*.*")], {}, r"20 \.tif"),
    "an image beside the classes": (lambda f: paint(f / "stray.png"), {}, r"1 of 21 .*stray\.png"),
    "an empty class": (lambda f: (f / "dogs" / "none").mkdir(parents=True), {}, "1 of 3 .*dogs"),
    "a class of bad images": (lambda f: write(f / "dogs" / "a.png"), {"on_error": "skip"}, "class 2"),
    "nothing left": (lambda f: [p.write_bytes(b"") for p in f.glob("**/*.*")], {"on_error": "skip"}, "Nothing is left"),
    "16 bits": (lambda f: Image.fromarray(np.full((8, 8), 3000, np.uint16)).save(f / "cats" / "a.png"), {}, "8 bits"),
    "too few classes": (lambda f: None, {"num_classes": 1}, "2 sub-folders with images"),
    "classes without labels": (lambda f: None, {"labels": "none", "num_classes": 3}, "have no labels"),
    "no sub-folder": (
        lambda f: paint(f / "deep" / "flat" / "a.png"),
        {"path": "deep/flat", "labels": "folders"},
        "no im",
    ),
    "labels of another kind": (lambda f: write(f / "l.txt"), {"labels": "l.txt"}, "Expected auto, folders"),
    "a csv of one column": (lambda f: write(f / "l.csv", "a.png\n"), {"labels": "l.csv"}, "row 1 "),
    "a csv without files": (lambda f: write(f / "l.csv", "id,label\na.png,1\n"), {"labels": "l.csv"}, "column 'file'"),
    "a csv that repeats": (lambda f: write(f / "l.csv", "a.png,1\na.png,2\n"), {"labels": "l.csv"}, "'a.png' twice"),
    "a csv of nothing": (lambda f: write(f / "l.csv"), {"labels": "l.csv"}, "are empty"),
    "no json": (lambda f: write(f / "l.json", "{"), {"labels": "l.json"}, "make no sense"),
    "a json without a label": (lambda f: write(f / "l.json", '{"a.png": null}'), {"labels": "l.json"}, "null is not"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_refused(folder, mistake, monkeypatch):
    spoil, options, expected = MISTAKES[mistake]
    spoil(folder)
    if folder.is_dir():
        monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match=expected):
        build(**{"path": folder, **options})


def test_missing_labels_are_counted_and_skipped(tmp_path, caplog):
    for number in range(6):
        paint(tmp_path / f"{number}.png", number)
    (tmp_path / "labels.csv").write_text("0.png,0\n1.png,-1\n2.png,5\n3.png,1\ngone.png,1\n")
    options = {"labels": str(tmp_path / "labels.csv"), "num_classes": 3}
    with pytest.raises(ConfigError, match=r"5 of 7.*gone\.png.*4\.png, 5\.png.*1\.png: -1, 2\.png: 5"):
        build(tmp_path, **options)
    with caplog.at_level(logging.WARNING, "freeflow"):
        assert everything(build(tmp_path, **options, on_error="skip")) == ([0, 3], [0, 1])
    assert "5 of 7" in caplog.text
