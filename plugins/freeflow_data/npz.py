"""Images from an .npz file, such as the samples that evaluation suites exchange."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from freeflow_core.config import ComponentConfig
from freeflow_core.errors import ConfigError, suggest
from freeflow_core.interfaces import BuildContext
from freeflow_data.augmentations import build_augmentation
from freeflow_data.config import NpzConfig
from freeflow_data.image_source import ImageSource
from freeflow_data.npz_arrays import array_names, open_array
from freeflow_data.ordering import Rows
from freeflow_data.problems import Problems
from freeflow_data.records import Records
from freeflow_data.split import split_rows

_IMAGE_NAMES = ("images", "x", "arr_0")
_LABEL_NAMES = ("labels", "label", "y", "arr_1")
_UNLABELLED = "none"


@final
class ArrayImages(Records):
    """Rows of a uint8 array (M, H, W, C), mapped or not, as images (N, C, H, W).

    Args:
        array: all images.
        rows: (M',) the rows of it that these records are.
        labels: int64 (M',), or None.
    """

    def __init__(self, array: npt.NDArray[np.uint8], rows: Rows, labels: Tensor | None) -> None:
        self._array = array
        self._rows = rows
        self._labels = labels

    @property
    def image_shape(self) -> tuple[int, int, int]:
        height, width, channels = self._array.shape[1:]
        return channels, height, width

    @property
    def labels(self) -> Tensor | None:
        return self._labels

    def __len__(self) -> int:
        return len(self._rows)

    def images_at(self, rows: Rows) -> Tensor:
        chosen = np.ascontiguousarray(self._array[self._rows[rows]].transpose(0, 3, 1, 2))
        return torch.from_numpy(chosen)

    def take(self, rows: Rows) -> ArrayImages:
        labels = None if self._labels is None else self._labels[torch.from_numpy(rows)]
        return ArrayImages(self._array, self._rows[rows], labels)


@final
class NpzSource(ImageSource):
    """uint8 images (M, H, W), (M, H, W, C) or (M, C, H, W) and, if any, integer labels (M,)."""

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        """Raises ``ConfigError`` for a file or arrays that cannot be used; see the options."""
        assert isinstance(config, NpzConfig)
        path = config.path.expanduser()
        names = array_names(path)
        image_name = _choose(path, names, config.images, _IMAGE_NAMES, "images")
        if image_name is None:
            raise ConfigError(
                f"{path} has no array named {', '.join(_IMAGE_NAMES[:-1])} or {_IMAGE_NAMES[-1]}; it holds "
                f"{', '.join(names) or 'none'}. Name the one with the images: source.images=NAME."
            )
        images = channels_last(open_array(path, image_name), config.layout, f"The array {image_name!r} of {path}")
        rows, labels = np.arange(len(images)), None
        if config.labels != _UNLABELLED and (name := _choose(path, names, config.labels, _LABEL_NAMES, "labels")):
            rows, labels = _labelled(open_array(path, name), len(images), config, f"The array {name!r} of {path}")
        elif config.num_classes is not None:
            raise ConfigError(
                f"source.num_classes={config.num_classes} is set, but {path} gives no labels; it holds "
                f"{', '.join(names)}. Name the labels' array: source.labels=NAME."
            )
        records = ArrayImages(images, rows, labels)
        classes = (config.num_classes or int(labels.max()) + 1) if labels is not None else None
        kept, held = split_rows(labels, len(records), config.held_out, config.split_seed)
        held_out = records.take(held) if len(held) else None
        return cls(records.take(kept), held_out, classes, config.seed, build_augmentation(config))


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
        raise ConfigError(
            f"{what} is {shape}: its channels may be second or last. Say which: source.layout=nchw or nhwc."
        )
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
    """The rows that can be used, and their labels."""
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        raise ConfigError(
            f"{what} is {labels.dtype} {labels.shape}. Expected one integer label an image, ({num_images},); one-hot "
            "rows need .argmax(1) first. Without labels: source.labels=none."
        )
    problems = Problems(f"{what}, with {num_images:,} images")
    usable = min(num_images, len(labels))
    total = max(num_images, len(labels))
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
