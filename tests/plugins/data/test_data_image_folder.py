from __future__ import annotations

import gc
import logging
import threading
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


def build(path: Path, **options: Any) -> ImageFolderSource:
    return ImageFolderSource(ImageFolderConfig.model_validate({"path": path, **options}))


def paint(path: Path, value: int = 0, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Path:
    """One colour, exact in every format used here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (value, value, value) if mode == "RGB" else value).save(path, lossless=True, quality=100)
    return path


def noise(path: Path, size: tuple[int, int] = (32, 32)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RANDOM.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of ten; each image has a grey value of its own, birds from 100 on."""
    for i in range(10):
        suffix = ("png", "jpg", "webp", "bmp", "jpeg")[i % 5]
        paint(tmp_path / "pictures" / "cats" / f"{i}.{suffix}", 5 * i)
        paint(tmp_path / "pictures" / "birds" / "deep" / f"{i}.{suffix.upper()}", 100 + 5 * i)
    return tmp_path / "pictures"


def everything(source: ImageFolderSource) -> tuple[list[int], Any]:
    images, labels = source.training_images()  # type: ignore[misc]
    return images[:, 0, 0, 0].tolist(), labels.tolist() if labels is not None else None  # type: ignore[union-attr]


def test_sub_folders_are_classes_by_name_at_any_depth(folder: Path) -> None:
    source = build(folder)
    assert (source.image_shape, source.num_classes, source.num_images) == ((3, 8, 8), 2, 20)
    values, labels = everything(source)
    assert sorted(values) == [*range(0, 50, 5), *range(100, 150, 5)]
    assert labels == [int(value < 100) for value in values]  # birds, cats


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_hold_the_same_images_whatever_the_threads(folder: Path, workers: int) -> None:
    sources = (build(folder, workers=workers, augment=["shift"]), build(folder, workers=7, augment=["shift"]))
    batches = [list(islice(source.batches(3, 6, 1, 2), 8)) for source in sources]
    for first, second in zip(*batches, strict=True):
        assert first.x.dtype == torch.uint8  # type: ignore[union-attr]
        assert torch.equal(first.x, second.x)  # type: ignore[arg-type]
        assert torch.equal(first.condition, second.condition)  # type: ignore[arg-type]


def test_threads_end_with_their_iterator(folder: Path) -> None:
    stream = build(folder).batches(0, 4, 0, 1)
    next(stream)
    assert any(thread.name.startswith("freeflow-data") for thread in threading.enumerate())
    stream.close()  # type: ignore[attr-defined]
    gc.collect()
    for thread in threading.enumerate():
        if thread.name.startswith("freeflow-data"):
            thread.join(10)
            assert not thread.is_alive()


def test_a_flat_folder_is_unlabelled_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    paint(tmp_path / ".thumbnails" / "b.png")
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "notes.txt").touch()
    source = build(tmp_path)
    assert (source.num_images, source.num_classes) == (1, None)
    assert next(source.batches(0, 3, 0, 1)).condition is None


def test_a_link_back_up_is_not_followed_forever(folder: Path) -> None:
    (folder / "cats" / "up").symlink_to(folder)
    assert build(folder, labels="none").num_images == 20


def test_held_out_images_are_a_share_of_each_class(folder: Path) -> None:
    source = build(folder, held_out=6)
    images, labels = source.held_out()  # type: ignore[misc]
    assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1]  # type: ignore[union-attr]
    assert source.num_images == 14
    assert not set(images[:, 0, 0, 0].tolist()) & set(everything(source)[0])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "file,label\nb.png,7\na.png,2\nsub/c.png,0\n"),
        ("labels.csv", "a.png,2\nb.png,7\n./sub/c.png,0\n"),
        ("labels.csv", "\ufefflabel,split,filename\n2,x,a.png\n7,x,b.png\n0,x,sub/c.png\n"),
        ("labels.json", '{"labels": [["a.png", 2], ["b.png", 7], ["sub/c.png", 0]]}'),
        ("labels.json", '{"a.png": 2, "b.png": "7", "sub/c.png": 0}'),
        ("labels.json", '[["a.png", 2], ["b.png", 7], ["sub/c.png", 0]]'),
    ],
)
def test_labels_from_a_file(tmp_path: Path, name: str, text: str) -> None:
    root = tmp_path / "pictures"
    for place, file in enumerate(("a.png", "b.png", "sub/c.png")):
        paint(root / file, 10 * place)
    (tmp_path / name).write_text(text, "utf-8")
    source = build(root, labels=str(tmp_path / name))
    assert everything(source) == ([0, 10, 20], [2, 7, 0])
    assert source.num_classes == 8
    assert build(root, labels=str(tmp_path / name), num_classes=11).num_classes == 11


def test_labels_that_are_names_are_numbered_by_name(tmp_path: Path) -> None:
    for file in ("a.png", "b.png", "c.png"):
        paint(tmp_path / file)
    (tmp_path / "labels.csv").write_text("a.png,zebra\nb.png,10\nc.png,9\n")
    source = build(tmp_path, labels=str(tmp_path / "labels.csv"))
    assert everything(source)[1] == [2, 0, 1]
    assert source.num_classes == 3


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("l.csv", "a.png\n", "row 1 "),
        ("l.csv", "image_id,label\na.png,1\n", "no column 'file'"),
        ("l.csv", "file,split,label\na.png,x\n", "row 2 "),
        ("l.csv", "", "are empty"),
        ("l.csv", "a.png,1\na.png,2\n", "'a.png' twice"),
        ("l.json", "{", "make no sense"),
        ("l.json", '{"labels": [["a.png"]]}', r'\["a.png"\] is not'),
        ("l.json", '{"a.png": null}', "null is not"),
        ("l.json", '{"a.png": true}', "true is not"),
        ("l.json", "3", "make no sense"),
        ("l.txt", "", "Expected auto, folders"),
        ("folder", "", "Expected auto, folders"),
    ],
)
def test_label_files_that_make_no_sense_are_refused(tmp_path: Path, name: str, text: str, expected: str) -> None:
    paint(tmp_path / "a.png")
    (tmp_path / name).write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=expected):
        build(tmp_path, labels=str(tmp_path / name))


def test_missing_labels_are_counted_named_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(6):
        paint(tmp_path / f"{number}.png", number)
    (tmp_path / "labels.csv").write_text("0.png,0\n1.png,-1\n2.png,5\n3.png,1\ngone.png,1\n")
    options = {"labels": str(tmp_path / "labels.csv"), "num_classes": 3}
    with pytest.raises(ConfigError) as caught:
        build(tmp_path, **options)
    for named in ("5 of 7", "1 (gone.png)", "2 (4.png, 5.png)", "2 (1.png: -1, 2.png: 5)"):
        assert named in str(caught.value)
    with caplog.at_level(logging.WARNING, "freeflow"):
        source = build(tmp_path, **options, on_error="skip")
    assert everything(source) == ([0, 3], [0, 1])
    assert "5 of 7" in caplog.text


def test_images_beside_the_class_folders_have_no_label(folder: Path) -> None:
    paint(folder / "stray.png")
    with pytest.raises(ConfigError, match=r"1 of 21 .*stray\.png"):
        build(folder)
    assert build(folder, on_error="skip").num_images == 20
    assert build(folder, labels="none").num_images == 21


def test_empty_class_folders_are_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "dogs" / "none").mkdir(parents=True)
    (folder / "apes").mkdir()
    with pytest.raises(ConfigError, match=r"2 of 4 .*apes, dogs"):
        build(folder)
    with caplog.at_level(logging.WARNING, "freeflow"):
        assert build(folder, on_error="skip").num_classes == 2
    assert "apes, dogs" in caplog.text
    assert build(folder, labels="none").num_images == 20


@pytest.mark.parametrize("others", [(), ("scan.tif", "movie.gif", "b.tif")])
def test_a_folder_without_images_says_what_is_there(tmp_path: Path, others: tuple[str, ...]) -> None:
    for name in others:
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=r"2 \.tif, 1 \.gif" if others else "it is empty"):
        build(tmp_path)
    with pytest.raises(ConfigError, match="There is no folder"):
        build(tmp_path / "nowhere")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_cut_off_and_foreign_files_are_found_by_their_headers(tmp_path: Path, suffix: str) -> None:
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


def test_sixteen_bits_are_refused_rather_than_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 3000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(UnusableImage, match="more than 8 bits"):
        read_header(tmp_path / "a.png")


def test_bad_images_are_counted_named_and_skipped(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(4):
        (folder / "cats" / f"empty{number}.png").touch()
    (folder / "birds" / "cut.png").write_bytes(noise(folder / "birds" / "cut.png", (8, 8)).read_bytes()[:100])
    with pytest.raises(ConfigError) as caught:
        build(folder)
    for named in ("5 of 25", "empty: 4 (cats/empty0.png", "and 1 more)", "cut off: 1 (birds/cut.png)"):
        assert named in str(caught.value)
    with caplog.at_level(logging.WARNING, "freeflow"):
        source = build(folder, on_error="skip")
    assert source.num_images == 20
    assert "cats/empty0.png" in caplog.text


def test_a_class_that_loses_all_images_is_refused_even_when_bad_ones_are_skipped(folder: Path) -> None:
    (folder / "dogs").mkdir()
    (folder / "dogs" / "a.png").touch()
    with pytest.raises(ConfigError, match=r"class 2 \(dogs/a.png\)"):
        build(folder, on_error="skip")


def test_when_nothing_is_left_skipping_does_not_help(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    for check in ("headers", "none"):
        with pytest.raises(ConfigError, match="Nothing is left"):
            build(tmp_path, on_error="skip", check=check)


def test_damage_inside_needs_decoding_to_be_found(folder: Path) -> None:
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


def test_without_a_check_the_first_good_image_speaks_for_all(folder: Path) -> None:
    (folder / "birds" / "a.png").touch()
    with pytest.raises(ConfigError, match=r"1 of 21 .*birds/a\.png"):
        build(folder, check="none")
    paint(folder / "cats" / "z.png", 1, (9, 8))
    source = build(folder, check="none", on_error="skip")
    assert (source.num_images, source.image_shape) == (21, (3, 8, 8))
    with pytest.raises(ConfigError, match=r"z\.png is \(3, 8, 9\), the others \(3, 8, 8\)"):
        source.training_images()


def test_mixed_sizes_are_refused_skipped_or_resized(folder: Path) -> None:
    paint(folder / "cats" / "wide.png", 200, (12, 8))
    paint(folder / "cats" / "tall.png", 200, (8, 30))
    with pytest.raises(ConfigError, match=r"2 \(cats/tall.png: 8 x 30, cats/wide.png: 12 x 8\)"):
        build(folder)
    assert build(folder, on_error="skip").num_images == 20
    resized = build(folder, size=6)
    assert (resized.num_images, resized.image_shape) == (22, (3, 6, 6))
    assert sorted(everything(resized)[0]) == sorted([*everything(build(folder, on_error="skip"))[0], 200, 200])


def test_channels_follow_the_images_unless_set(tmp_path: Path) -> None:
    paint(tmp_path / "grey.png", 40, mode="L")
    paint(tmp_path / "bits.png", 1, mode="1")
    assert build(tmp_path).image_shape == (1, 8, 8)
    assert sorted(everything(build(tmp_path))[0]) == [40, 255]
    assert build(tmp_path, channels=3).image_shape == (3, 8, 8)
    paint(tmp_path / "colour.png", 80)
    assert build(tmp_path).image_shape == (3, 8, 8)
    assert sorted(everything(build(tmp_path, channels=1))[0]) == [40, 80, 255]


def test_transparency_is_dropped(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(tmp_path / "a.png")
    image = build(tmp_path).training_images()[0][0]  # type: ignore[index]
    assert image[:, 0, 0].tolist() == [10, 20, 30]


def test_adm_halves_with_a_box_filter_before_it_resizes() -> None:
    # A fine chequerboard of 0 and 200: box halving gives exactly its mean, everywhere.
    board = Image.fromarray((np.indices((64, 96)).sum(0) % 2 * 200).astype(np.uint8))
    for size in (32, 16, 20):
        cropped = np.asarray(centre_crop(board, size, "adm"))
        assert cropped.shape == (size, size)
        assert (cropped == 100).all()


@pytest.mark.parametrize("resize", ["adm", "bicubic", "lanczos"])
def test_the_middle_of_the_longer_side_is_kept(resize: Any) -> None:
    wide = np.zeros((40, 120), np.uint8)
    wide[:, 40:80] = 250
    tall = Image.fromarray(wide.T.copy())
    for image in (Image.fromarray(wide), tall):
        cropped = np.asarray(centre_crop(image, 30, resize))
        assert cropped.shape == (30, 30)
        assert (cropped[3:-3, 3:-3] > 240).all()


def test_num_classes_is_held_against_the_folders(folder: Path) -> None:
    assert build(folder, num_classes=5).num_classes == 5
    with pytest.raises(ConfigError, match="2 sub-folders with images"):
        build(folder, num_classes=1)
    with pytest.raises(ConfigError, match="have no labels"):
        build(folder, labels="none", num_classes=3)
    with pytest.raises(ConfigError, match="no image in"):
        build(folder / "cats", labels="folders")
