"""What is left in the folder: one array for evaluators, or one picture a sample."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, final

import numpy as np
import torch
from PIL import features

from freeflow_core.errors import ConfigError
from freeflow_core.evaluation.pictures import save_image
from freeflow_core.files import write_text
from freeflow_core.tools.sample_files.blocks import Blocks
from freeflow_core.tools.sample_files.npz import StreamedArray, write_npz
from freeflow_core.tools.sample_files.parts import Parts

FileFormat = Literal["npz", "png", "webp"]
ARRAY_FILE = "samples.npz"
LABELS_FILE = "labels.csv"
_MOST_THREADS = 8
_TAKES_A_WHILE = 2**30
_log = logging.getLogger("freeflow")


class SampleFormat(ABC):
    """How samples are written. Arrays are (n, H, W, C) uint8, or (n, *D) for states that are not images."""

    keeps_samples: bool
    """Whether finished blocks hold the samples themselves until the end."""

    @abstractmethod
    def file_names(self, num: int) -> list[str]:
        """What the samples 0 ... num - 1 are written to, without what only some models have."""

    @abstractmethod
    def write_block(self, folder: Path, indices: range, samples: np.ndarray) -> None:
        """Write what can be written now. Raises ``OSError`` when the disk is full."""

    @abstractmethod
    def finish(self, folder: Path, parts: Parts, blocks: Blocks) -> None:
        """Make the final files of all finished blocks. Raises ``OSError`` when the disk is full."""

    def files(self, folder: Path, num: int) -> list[Path]:
        """The final files."""
        return [folder / name for name in self.file_names(num)]

    def missing(self, folder: Path, num: int) -> set[str]:
        """Names of final files that are not there; an empty file counts as none."""
        try:
            present = {entry.name for entry in os.scandir(folder) if entry.stat().st_size}
        except FileNotFoundError:
            present = set()
        return set(self.file_names(num)) - present


@final
class ArrayFormat(SampleFormat):
    """``samples.npz``: ``arr_0`` with all samples and, for models with classes, their labels ``arr_1`` (n,) int64.

    The layout of ADM's samples (Dhariwal & Nichol 2021), whose evaluator reads ``arr_0``.
    """

    keeps_samples = True

    def file_names(self, num: int) -> list[str]:
        return [ARRAY_FILE]

    def write_block(self, folder: Path, indices: range, samples: np.ndarray) -> None:
        pass

    def finish(self, folder: Path, parts: Parts, blocks: Blocks) -> None:
        first = parts.read(0)
        assert first.samples is not None
        if blocks.num * first.samples[0].nbytes > _TAKES_A_WHILE:
            _log.info("Putting %s samples together in %s.", f"{blocks.num:,}", folder / ARRAY_FILE)
        arrays = {
            "arr_0": StreamedArray(
                blocks.num, first.samples.shape[1:], first.samples.dtype, _each_samples(parts, len(blocks))
            )
        }
        if first.labels is not None:
            labels = _each_labels(parts, len(blocks))
            arrays["arr_1"] = StreamedArray(blocks.num, first.labels.shape[1:], first.labels.dtype, labels)
        write_npz(folder / ARRAY_FILE, arrays)


@final
class ImageFormat(SampleFormat):
    """``000000.png`` ... or ``.webp``, both lossless, and for models with classes ``labels.csv``.

    Raises:
        ConfigError: this Pillow was built without WebP.
    """

    keeps_samples = False

    def __init__(self, suffix: Literal["png", "webp"]) -> None:
        if suffix == "webp" and not features.check("webp"):
            raise ConfigError("This Pillow was built without WebP. Use --format png, or install another Pillow.")
        self._suffix = suffix

    def file_names(self, num: int) -> list[str]:
        return [self._name(index) for index in range(num)]

    def write_block(self, folder: Path, indices: range, samples: np.ndarray) -> None:
        def save(pair: tuple[int, np.ndarray]) -> None:
            save_image(torch.from_numpy(pair[1]).permute(2, 0, 1), folder / self._name(pair[0]))

        with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:  # compression leaves Python's lock
            for _ in pool.map(save, zip(indices, samples, strict=True)):
                pass

    def finish(self, folder: Path, parts: Parts, blocks: Blocks) -> None:
        labels = list(_each_labels(parts, len(blocks)))
        if not labels:
            return
        lines = ["file,label\n"]
        lines += [f"{self._name(i)},{label}\n" for i, label in enumerate(np.concatenate(labels).tolist())]
        write_text(folder / LABELS_FILE, "".join(lines))

    def _name(self, index: int) -> str:
        return f"{index:06d}.{self._suffix}"


def sample_format(name: FileFormat, sample_shape: tuple[int, ...]) -> SampleFormat:
    """The format of this name, for states of shape ``sample_shape``. Raises ``ConfigError`` for pictures of points."""
    if name == "npz":
        return ArrayFormat()
    if len(sample_shape) != 3:
        raise ConfigError(
            f"The samples of this model have the shape {sample_shape}: they are no images, so they cannot be written "
            f"as {name}. Use --format npz."
        )
    return ImageFormat(name)


def _each_samples(parts: Parts, num_blocks: int) -> Iterator[np.ndarray]:
    for block in range(num_blocks):
        samples = parts.read(block).samples
        assert samples is not None
        yield samples


def _each_labels(parts: Parts, num_blocks: int) -> Iterator[np.ndarray]:
    for block in range(num_blocks):
        labels = parts.read(block, samples=False).labels
        if labels is not None:
            yield labels
