"""MNIST, and the data sets that come in the same four idx files: a magic number, the sizes, then the bytes."""

import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import numpy.typing as npt
import torch

from freeflow_core.errors import ConfigError
from freeflow_data.config import MNISTConfig, OnError
from freeflow_data.images import Images, ImageSource, Problems

NUM_CLASSES = 10
_MAGIC = {1: b"\0\0\x08\x01", 3: b"\0\0\x08\x03"}
"""Of unsigned bytes, by the number of dimensions."""
_LARGEST_ROW, _LARGEST = 2**26, 2**36
"""Bytes of an image and of a file beyond which a header is damaged."""
_KINDS = {1: "labels", 3: "images"}


@final
class MNISTSource(ImageSource):
    """Grey images of ten classes from idx files: 60,000 to train on and 10,000 to test with, 28 x 28 in MNIST.

    Nothing is downloaded.
    """

    def __init__(self, config: MNISTConfig) -> None:
        """Raises ``ConfigError`` for files that are missing, damaged, cut off, or hold labels beyond 9."""
        folder = config.path.expanduser()
        if not folder.is_dir():
            raise ConfigError(
                f"There is no folder {folder} with idx files. Nothing is downloaded: put the four files there "
                "(train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-..., t10k-labels-...), or name "
                "the folder that holds them: source.path=FOLDER."
            )
        training = read_pair(folder, "train", config.on_error)
        held_out: Images | None
        if config.held_out == "test":
            held_out = read_pair(folder, "t10k", config.on_error)
            if held_out.shape != training.shape:
                raise ConfigError(
                    f"The test images in {folder} are {held_out.shape}, the training images {training.shape}. They "
                    "belong to different data sets; keep each in a folder of its own."
                )
        else:
            training, held_out = training.split(config.held_out, config.split_seed)
        super().__init__(training, held_out, NUM_CLASSES, config)


def read_pair(folder: Path, part: str, on_error: OnError) -> Images:
    """The images and labels of ``part``, ``train`` or ``t10k``.

    Raises:
        ConfigError: a file is missing or damaged; or, unless such images are skipped, one is cut off, the two do not
            hold equally many rows, or a label is not in 0..9.
    """
    images = read_idx(find_idx(folder, f"{part}-images-idx3-ubyte"), 3)
    labels = read_idx(find_idx(folder, f"{part}-labels-idx1-ubyte"), 1)
    total = max(images.promised, labels.promised)
    usable = min(len(images.values), len(labels.values))
    problems = Problems(f"The idx files {images.path} and {labels.path.name}")
    images_there = f"{len(images.values):,} whole images of {images.promised:,}"
    there = f"from number {usable} on: {images_there}, {len(labels.values):,} labels of {labels.promised:,}"
    problems.add("without an image or a label", [there], total - usable)
    wrong = labels.values[:usable] >= NUM_CLASSES
    numbers = np.flatnonzero(wrong).tolist()
    problems.add(f"label outside 0 to {NUM_CLASSES - 1}", [f"number {n}: {labels.values[n]}" for n in numbers])
    problems.settle(on_error, total, "Copy the files again.")
    rows = np.flatnonzero(~wrong)
    if not len(rows):
        raise ConfigError(f"{images.path} holds no images at all. Copy the files again.")
    grey = torch.from_numpy(images.values[rows][:, None])
    return Images.in_memory(grey, torch.from_numpy(labels.values[rows].astype(np.int64)))


@dataclass(frozen=True)
class IdxFile:
    """The whole rows of an idx file: ``values`` uint8 (M, ...), M at most the ``promised`` number of its header."""

    path: Path
    values: npt.NDArray[np.uint8]
    promised: int


def find_idx(folder: Path, name: str) -> Path:
    """``name`` in a folder, or ``name.gz``; also spelt with a dot, as some copies are (``train-images.idx3-ubyte``)."""
    dotted = name.replace("-idx", ".idx")
    for candidate in (name, f"{name}.gz", dotted, f"{dotted}.gz"):
        if (folder / candidate).is_file():
            return folder / candidate
    raise ConfigError(
        f"There is no {name} or {name}.gz in {folder}. Expected the data set's idx files there; nothing is "
        "downloaded. Put them in that folder, or name another one: source.path=FOLDER."
    )


def read_idx(path: Path, dimensions: int) -> IdxFile:
    """An idx file of uint8 with ``dimensions`` (1: labels, 3: images), decompressed when it ends in ``.gz``.

    A file that ends too early gives the rows that are whole.

    Raises:
        ConfigError: it cannot be read, has another magic number, or holds more than its header says.
    """
    start = 4 + 4 * dimensions
    content = _read(path, start)
    if len(content) < start or content[:4] != _MAGIC[dimensions]:
        came = f"begins with 0x{content[:4].hex()}" if len(content) >= start else f"holds {len(content)} bytes"
        raise ConfigError(
            f"{path} is not an idx file of {_KINDS[dimensions]}, which begins with 0x{_MAGIC[dimensions].hex()}: it "
            f"{came}. Check that the files were not mixed up, renamed or cut off."
        )
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    row, size = math.prod(shape[1:]), len(content) - start
    if row > _LARGEST_ROW:
        raise ConfigError(f"{path} promises images of {' x '.join(map(str, shape[1:]))}. It is damaged; copy it again.")
    if size > shape[0] * row:
        raise ConfigError(
            f"{path} holds {size:,} bytes after its header, which promises {shape[0]:,} x {row:,}. The file is "
            "damaged; copy it again."
        )
    held = size // row if row else 0
    return IdxFile(path, np.frombuffer(content, np.uint8, held * row, start).reshape(held, *shape[1:]), shape[0])


def _read(path: Path, start: int) -> bytes:
    """The whole file, or what a cut-off compressed one still gives; hardly more than the header promises."""
    try:
        content = path.read_bytes()
        if path.suffix != ".gz":
            return content
        opened = zlib.decompressobj(wbits=31)  # unlike gzip.open it gives what came before a cut
        header = opened.decompress(content, start)
        promised = math.prod(struct.unpack(f">{len(header[4:]) // 4}I", header[4:])) if len(header) == start else 0
        return header + opened.decompress(opened.unconsumed_tail, min(promised, _LARGEST) + 1)
    except (OSError, zlib.error) as error:
        raise ConfigError(f"{path} cannot be read: {error}. It is damaged; copy it again.") from None
