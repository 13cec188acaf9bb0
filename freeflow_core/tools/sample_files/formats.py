"""What is left in the folder: one array for evaluators, or one picture a sample."""

from __future__ import annotations

import logging
import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Literal, final

import numpy as np
import torch
from PIL import features
from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_core.evaluation.pictures import save_image
from freeflow_core.evaluation.sampling import SampleBatch
from freeflow_core.files import replacing, write_text
from freeflow_core.tools.sample_files.blocks import Blocks, Parts
from freeflow_core.types import Condition

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
        arrays: dict[str, Iterable[np.ndarray]] = {"arr_0": _samples(parts, len(blocks))}
        if first.labels is not None:
            arrays["arr_1"] = _labels(parts, len(blocks))
        write_npz(folder / ARRAY_FILE, blocks.num, arrays)


@final
class ImageFormat(SampleFormat):
    """``000000.png`` ... or ``.webp``, both lossless, and for models with classes ``labels.csv``.

    Raises ``ConfigError``: this Pillow was built without WebP.
    """

    keeps_samples = False

    def __init__(self, suffix: Literal["png", "webp"]) -> None:
        if suffix == "webp" and not features.check("webp"):
            raise ConfigError("This Pillow was built without WebP. Use --format png, or install another Pillow.")
        self._suffix = suffix

    def file_names(self, num: int) -> list[str]:
        return [self._name(index) for index in range(num)]

    def write_block(self, folder: Path, indices: range, samples: np.ndarray) -> None:
        def save(index: int, sample: np.ndarray) -> None:
            save_image(torch.from_numpy(sample).permute(2, 0, 1), folder / self._name(index))

        with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:  # compression leaves Python's lock
            list(pool.map(save, indices, samples))

    def finish(self, folder: Path, parts: Parts, blocks: Blocks) -> None:
        if labels := list(_labels(parts, len(blocks))):
            lines = [f"{self._name(i)},{label}\n" for i, label in enumerate(np.concatenate(labels).tolist())]
            write_text(folder / LABELS_FILE, "".join(["file,label\n", *lines]))

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


def host_samples(batch: SampleBatch) -> Tensor:
    """uint8 images (n, 1|3, H, W), or states (n, *D) of models without images, on the host.

    Raises ``ConfigError``: the codec left latents that are no images.
    """
    images = batch.images
    if images.ndim == 4 and images.shape[1] not in (1, 3):
        raise ConfigError(
            f"The samples have {images.shape[1]} channels: they are latents, and the codec left them as they are. Name "
            "the codec they were made with, e.g. --set codec=sd-vae."
        )
    return images.cpu()


def file_array(samples: Tensor) -> np.ndarray:
    """Images as (n, H, W, C), everything else as it is."""
    return (samples.permute(0, 2, 3, 1) if samples.ndim == 4 else samples).contiguous().numpy()


def class_labels(conditions: list[Condition]) -> np.ndarray | None:
    """(n,) int64 of all batches, or None when the conditions are not classes."""
    classes = [c.cpu() for c in conditions if isinstance(c, Tensor) and c.ndim == 1 and not c.is_floating_point()]
    return torch.cat(classes).long().numpy() if len(classes) == len(conditions) else None


def write_npz(path: Path, rows: int, arrays: Mapping[str, Iterable[np.ndarray]]) -> None:
    """Write arrays (``rows``, ...) that come in chunks along their first axis; none is ever whole in memory.

    They are laid out as ``np.savez`` does, uncompressed; equal arrays make equal files.

    Raises ``OSError``: the disk is full. Nothing is left at ``path`` that was not there before.
    """
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, chunks in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            with archive.open(member, "w", force_zip64=True) as stream:
                following = iter(chunks)
                first = next(following)
                description = np.lib.format.dtype_to_descr(first.dtype)
                header = {"descr": description, "fortran_order": False, "shape": (rows, *first.shape[1:])}
                np.lib.format.write_array_header_1_0(stream, header)
                written = 0
                for chunk in chain([first], following):
                    assert (chunk.shape[1:], chunk.dtype) == (first.shape[1:], first.dtype)
                    stream.write(np.ascontiguousarray(chunk).data)
                    written += len(chunk)
                assert written == rows


def _samples(parts: Parts, num_blocks: int) -> Iterator[np.ndarray]:
    for block in range(num_blocks):
        samples = parts.read(block).samples
        assert samples is not None
        yield samples


def _labels(parts: Parts, num_blocks: int) -> Iterator[np.ndarray]:
    for block in range(num_blocks):
        labels = parts.read(block, samples=False).labels
        if labels is not None:
            yield labels
