"""A folder of image files, decoded when they are asked for."""

from __future__ import annotations

from typing import Self, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from freeflow_core.config import ComponentConfig
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import BuildContext
from freeflow_data.augmentations import build_augmentation
from freeflow_data.config import ImageFolderConfig
from freeflow_data.image_decode import Resize, decode_image
from freeflow_data.image_scan import Scan, scan_folder
from freeflow_data.image_source import ImageSource
from freeflow_data.ordering import Rows
from freeflow_data.records import Records
from freeflow_data.split import split_rows


@final
class ImageFiles(Records):
    """Images of a scanned folder.

    Args:
        scan: the files and what they become.
        rows: (M,) those of its files that these records are.
        size, resize: see :func:`freeflow_data.image_decode.centre_crop`.
    """

    def __init__(self, scan: Scan, rows: Rows, size: int | None, resize: Resize) -> None:
        self._scan = scan
        self._rows = rows
        self._labels = None if scan.labels is None else scan.labels[torch.from_numpy(rows)]
        self._size = size
        self._resize: Resize = resize

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self._scan.image_shape

    @property
    def labels(self) -> Tensor | None:
        return self._labels

    def __len__(self) -> int:
        return len(self._rows)

    def images_at(self, rows: Rows) -> Tensor:
        images = np.empty((len(rows), *self.image_shape), dtype=np.uint8)
        for place, row in enumerate(self._rows[rows].tolist()):
            images[place] = self._decode(self._scan.files[row])
        return torch.from_numpy(images)

    def take(self, rows: Rows) -> ImageFiles:
        return ImageFiles(self._scan, self._rows[rows], self._size, self._resize)

    def _decode(self, name: str) -> npt.NDArray[np.uint8]:
        try:
            pixels = decode_image(self._scan.root / name, self.image_shape[0], self._size, self._resize)
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise ConfigError(
                f"The image {self._scan.root / name} cannot be decoded: {error}. Its header was in order; "
                "source.check=decode finds such images before training, and with source.on_error=skip leaves them out."
            ) from error
        if pixels.shape != self.image_shape:
            raise ConfigError(
                f"The image {self._scan.root / name} is {pixels.shape}, the others {self.image_shape}. Set source.size "
                "to resize them, or source.check=headers to have all sizes looked at before training."
            )
        return pixels


@final
class ImageFolderSource(ImageSource):
    """PNG, JPEG, WebP and BMP files under a folder, with classes from sub-folders or a file, or without any."""

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        """Lists and checks all images. Raises ``ConfigError`` as :func:`freeflow_data.image_scan.scan_folder` does."""
        assert isinstance(config, ImageFolderConfig)
        scan = scan_folder(config)
        kept, held = split_rows(scan.labels, len(scan.files), config.held_out, config.split_seed)
        return cls(
            ImageFiles(scan, kept, config.size, config.resize),
            ImageFiles(scan, held, config.size, config.resize) if len(held) else None,
            scan.num_classes,
            config.seed,
            build_augmentation(config),
            config.workers,
        )
