"""MNIST, and the data sets that come in the same four files."""

from __future__ import annotations

from pathlib import Path
from typing import Self, final

import numpy as np
import torch

from freeflow_core.config import ComponentConfig
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import BuildContext
from freeflow_data.augmentations import build_augmentation
from freeflow_data.config import MNISTConfig, OnError
from freeflow_data.idx_file import find_idx, read_idx
from freeflow_data.in_memory import ImageSet, InMemorySource
from freeflow_data.problems import Problems
from freeflow_data.split import split_rows

NUM_CLASSES = 10


@final
class MNISTSource(InMemorySource):
    """Grey images of ten classes from idx files: 60,000 to train on and 10,000 to test with, 28 x 28 in MNIST.

    Nothing is downloaded.
    """

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        """Raises ``ConfigError`` for files that are missing, damaged, cut off, or hold labels beyond 9."""
        assert isinstance(config, MNISTConfig)
        folder = config.path.expanduser()
        if not folder.is_dir():
            raise ConfigError(
                f"There is no folder {folder} with idx files. Nothing is downloaded: put the four files there "
                "(train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-..., t10k-labels-...), or name "
                "the folder that holds them: source.path=FOLDER."
            )
        training, held_out = read_pair(folder, "train", config.on_error), None
        if config.held_out == "test":
            held_out = read_pair(folder, "t10k", config.on_error)
            if held_out.image_shape != training.image_shape:
                raise ConfigError(
                    f"The test images in {folder} are {held_out.image_shape}, the training images "
                    f"{training.image_shape}. They belong to different data sets; keep each in a folder of its own."
                )
        elif config.held_out:
            kept, held = split_rows(training.labels, len(training), config.held_out, config.split_seed)
            training, held_out = training.take(kept), training.take(held)
        return cls(training, held_out, NUM_CLASSES, config.seed, build_augmentation(config))


def read_pair(folder: Path, part: str, on_error: OnError) -> ImageSet:
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
    there = f"{len(images.values):,} whole images of {images.promised:,}, {len(labels.values):,} labels of "
    there += f"{labels.promised:,}"
    problems.add("without an image or a label", [f"from number {usable} on: {there}"], total - usable)
    wrong = labels.values[:usable] >= NUM_CLASSES
    numbers = np.flatnonzero(wrong).tolist()
    problems.add(f"label outside 0 to {NUM_CLASSES - 1}", [f"number {n}: {labels.values[n]}" for n in numbers])
    problems.settle(on_error, total, "Copy the files again.")
    rows = np.flatnonzero(~wrong)
    if not len(rows):
        raise ConfigError(f"{images.path} holds no images at all. Copy the files again.")
    grey = torch.from_numpy(images.values[rows][:, None])
    return ImageSet(grey, torch.from_numpy(labels.values[rows].astype(np.int64)))
