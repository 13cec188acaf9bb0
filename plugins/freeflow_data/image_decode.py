"""From a file to a uint8 image of the wanted size."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from freeflow_data.image_header import FORMATS

Resize = Literal["adm", "bicubic", "lanczos"]


def decode_image(path: Path, channels: int, size: int | None, resize: Resize) -> npt.NDArray[np.uint8]:
    """(C, H, W) uint8; transparency is dropped, as ADM does.

    Args:
        path: the file.
        channels: 1 for grey, 3 for RGB.
        size: side to resize and crop to; None: as it is.
        resize: see :func:`centre_crop`.

    Raises:
        OSError: Pillow cannot decode it. Also ``SyntaxError``, ``ValueError`` and ``EOFError``.
    """
    with Image.open(path, formats=FORMATS) as opened:
        image = opened.convert("L" if channels == 1 else "RGB")
    if size is not None:
        image = centre_crop(image, size, resize)
    pixels = np.array(image, dtype=np.uint8)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def centre_crop(image: Image.Image, size: int, resize: Resize) -> Image.Image:
    """The shorter side becomes ``size``, then the middle is cut out.

    ``"adm"`` halves with a box filter as long as the shorter side is at least twice ``size``, then resizes with a
    bicubic one, as the reference images of ImageNet were made (Dhariwal & Nichol 2021, guided-diffusion's
    ``center_crop_arr``); ``"bicubic"`` and ``"lanczos"`` resize once.
    """
    if resize == "adm":
        while min(image.size) >= 2 * size:
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    method = Image.Resampling.LANCZOS if resize == "lanczos" else Image.Resampling.BICUBIC
    image = image.resize((round(image.width * scale), round(image.height * scale)), method)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
