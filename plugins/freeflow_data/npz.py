"""Images from an .npz file, such as the samples that evaluation suites exchange."""

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from freeflow_core.errors import ConfigError, suggest
from freeflow_data.config import NpzConfig
from freeflow_data.images import Images, ImageSource, Problems, Rows

_IMAGE_NAMES = ("images", "x", "arr_0")
_LABEL_NAMES = ("labels", "label", "y", "arr_1")
_UNLABELLED = "none"
_LOCAL_HEADER = 30


@final
class NpzSource(ImageSource):
    """uint8 images (M, H, W), (M, H, W, C) or (M, C, H, W) and, if any, integer labels (M,)."""

    def __init__(self, config: NpzConfig) -> None:
        """Raises ``ConfigError`` for a file or arrays that cannot be used; see the options."""
        path = config.path.expanduser()
        names = array_names(path)
        image_name = _choose(path, names, config.images, _IMAGE_NAMES, "images")
        if image_name is None:
            raise ConfigError(
                f"{path} has no array named {', '.join(_IMAGE_NAMES[:-1])} or {_IMAGE_NAMES[-1]}; it holds "
                f"{', '.join(names) or 'none'}. Name the one with the images: source.images=NAME."
            )
        array = channels_last(open_array(path, image_name), config.layout, f"The array {image_name!r} of {path}")
        rows, labels = np.arange(len(array)), None
        if config.labels != _UNLABELLED and (name := _choose(path, names, config.labels, _LABEL_NAMES, "labels")):
            rows, labels = _labelled(open_array(path, name), len(array), config, f"The array {name!r} of {path}")
        elif config.num_classes is not None:
            raise ConfigError(
                f"source.num_classes={config.num_classes} is set, but {path} gives no labels; it holds "
                f"{', '.join(names)}. Name the labels' array: source.labels=NAME."
            )

        def read(rows: Rows) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array[rows].transpose(0, 3, 1, 2)))

        height, width, channels = array.shape[1:]
        images = Images(read, (channels, height, width), rows, labels)
        classes = (config.num_classes or int(labels.max()) + 1) if labels is not None else None
        super().__init__(*images.split(config.held_out, config.split_seed), classes, config)


def channels_last(array: npt.NDArray[Any], layout: str, what: str) -> npt.NDArray[np.uint8]:
    """A view (M, H, W, C) of uint8 images. Raises ``ConfigError`` for another type, shape or an unclear layout."""
    shape = array.shape
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or 0 in shape:
        raise ConfigError(
            f"{what} is {array.dtype} {shape}. Expected uint8 images (M, H, W), (M, H, W, C) or (M, C, H, W), at least "
            "one, with grey values 0 to 255."
        )
    if array.ndim == 3:
        return array[..., None]
    last, second = shape[3] in (1, 3), shape[1] in (1, 3)
    if layout == "auto" and last and second:
        raise ConfigError(f"{what} is {shape}: channels second or last? Say which: source.layout=nchw or nhwc.")
    if layout == "nchw" or (layout == "auto" and second):
        array, shape = array.transpose(0, 2, 3, 1), (shape[0], *shape[2:], shape[1])
    if shape[3] not in (1, 3):
        raise ConfigError(f"{what} is {shape} as (M, H, W, C). Expected 1 or 3 channels; set source.layout.")
    return array


def _choose(path: Path, names: list[str], asked: str | None, usual: tuple[str, ...], what: str) -> str | None:
    if asked is None:
        return next((name for name in usual if name in names), None)
    if asked not in names:
        raise ConfigError(
            f"{path} has no array {asked!r} (source.{what}).{suggest(asked, names)} It holds: "
            f"{', '.join(names) or 'none'}."
        )
    return asked


def _labelled(labels: npt.NDArray[Any], num_images: int, config: NpzConfig, what: str) -> tuple[Rows, Tensor]:
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        raise ConfigError(
            f"{what} is {labels.dtype} {labels.shape}. Expected one integer label an image, ({num_images},); one-hot "
            "rows need .argmax(1) first. Without labels: source.labels=none."
        )
    problems = Problems(f"{what}, with {num_images:,} images")
    usable, total = sorted((num_images, len(labels)))
    problems.add(
        "without a partner", [f"from row {usable} on: {num_images:,} images, {len(labels):,} labels"], total - usable
    )
    classes = labels[:usable].astype(np.int64)
    wrong = (classes < 0) | (classes >= (config.num_classes or np.inf))
    allowed = f"0 to {config.num_classes - 1}" if config.num_classes else "0 and more"
    problems.add(f"label outside {allowed}", (f"row {r}: {classes[r]}" for r in np.flatnonzero(wrong).tolist()))
    problems.settle(config.on_error, total, "Correct the labels.")
    rows = np.flatnonzero(~wrong)
    return rows, torch.from_numpy(classes[rows])


def array_names(path: Path) -> list[str]:
    """Names of the arrays in the file. Raises ``ConfigError`` when it is no .npz file, or was cut off."""
    try:
        with zipfile.ZipFile(path) as file:
            return [name.removesuffix(".npy") for name in file.namelist()]
    except OSError as error:
        raise ConfigError(f"The npz file {path} cannot be read: {error}. Check source.path.") from None
    except zipfile.BadZipFile:
        raise ConfigError(
            f"{path} is not an .npz file, or was cut off: {path.stat().st_size:,} bytes without the table of contents "
            "that ends one. Copy it again, or write it with numpy.savez."
        ) from None


def open_array(path: Path, name: str) -> npt.NDArray[Any]:
    """One array, read-only; nothing in the file is executed.

    Raises:
        ConfigError: the array is damaged or cut off, or holds Python objects.
    """
    try:
        with zipfile.ZipFile(path) as file:
            member = file.getinfo(f"{name}.npy")
            if member.compress_type == zipfile.ZIP_STORED:
                return _mapped(path, member)
            with file.open(member) as stream:
                loaded: npt.NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
                return loaded
    except (OSError, ValueError, EOFError, KeyError, struct.error, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(
            f"The array {name!r} of {path} cannot be read: {error}. Expected a whole array of numbers; write the file "
            "again with numpy.savez."
        ) from None


def _mapped(path: Path, member: zipfile.ZipInfo) -> npt.NDArray[Any]:
    """numpy maps .npy files but not those inside a zip, so find where the member's bytes begin and map them there."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        header = file.read(_LOCAL_HEADER)
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        file.seek(member.header_offset + _LOCAL_HEADER + name_length + extra_length)
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"its .npy version {version} is not known")
        old = version == (1, 0)
        read_header = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran_order else "C")
