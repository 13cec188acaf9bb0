"""One image file, by Pillow: what it says of itself, and its pixels in the wanted size."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from freeflow_data.config import Resize

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
GREY_MODES = ("1", "L", "LA")
_MODES = (*GREY_MODES, "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_TAIL = 1024

DAMAGED = (OSError, SyntaxError, ValueError, EOFError)
"""Pillow's ways to say that a file is damaged."""


class UnusableImage(Exception):
    """Why an image cannot be used: a kind of problem, as in :class:`freeflow_data.images.Problems`."""


@dataclass(frozen=True)
class ImageHeader:
    """(height, width) in pixels, and whether it is grey."""

    size: tuple[int, int]
    grey: bool


def read_header(path: Path, decode: bool = False) -> ImageHeader:
    """Size and kind of an image.

    A cut-off file is found by its last bytes, or by decoding when those are not what they usually are.

    With ``decode`` every pixel is decoded too, which also finds damage inside.

    Raises:
        UnusableImage: it is empty, of another format, cut off, damaged, or has more than 8 bits a channel.
    """
    try:
        length = path.stat().st_size
        if not length:
            raise UnusableImage("empty")
        with Image.open(path, formats=FORMATS) as image:
            if image.mode not in _MODES:
                raise UnusableImage(f"more than 8 bits a channel, mode {image.mode}")
            header = ImageHeader((image.height, image.width), image.mode in GREY_MODES)
            if decode or not _ends_well(path, image.format or "", length):
                image.load()
            return header
    except UnidentifiedImageError:
        raise UnusableImage("not PNG, JPEG, WebP or BMP") from None
    except Image.DecompressionBombError:
        raise UnusableImage("larger than 178 megapixels") from None
    except PermissionError:
        raise UnusableImage("without permission to read") from None
    except DAMAGED:
        raise UnusableImage("damaged or cut off") from None


def _ends_well(path: Path, kind: str, length: int) -> bool:
    """Whether the file is as long as it says (WebP, BMP) or ends as its format does (PNG, JPEG)."""
    with path.open("rb") as file:
        start = file.read(12)
        file.seek(max(0, length - _TAIL))
        tail = file.read()
    return {
        "PNG": b"IEND" in tail[-12:],
        "JPEG": b"\xff\xd9" in tail,
        "WEBP": int.from_bytes(start[4:8], "little") + 8 <= length,
        "BMP": 0 < int.from_bytes(start[2:6], "little") <= length,
    }.get(kind, False)


def decode_image(path: Path, channels: int, size: int | None, resize: Resize) -> npt.NDArray[np.uint8]:
    """(C, H, W) uint8 in 1 or 3 channels, cropped to ``size`` if that is given; transparency is dropped, as ADM does.

    Raises:
        OSError, SyntaxError, ValueError, EOFError: Pillow cannot decode it.
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
