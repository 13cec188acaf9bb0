"""What an image file says of itself, without decoding it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
GREY_MODES = ("1", "L", "LA")
_MODES = (*GREY_MODES, "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_TAIL = 1024


class UnusableImage(Exception):
    """Why an image cannot be used: a kind of problem, as in :class:`freeflow_data.problems.Problems`."""


@dataclass(frozen=True)
class ImageHeader:
    """(height, width) in pixels, and whether it is grey."""

    size: tuple[int, int]
    grey: bool


def read_header(path: Path, decode: bool = False) -> ImageHeader:
    """Size and kind of an image.

    A cut-off file is found by its last bytes, or by decoding when those are not what they usually are.

    Args:
        path: the file.
        decode: decode every pixel too, which also finds damage inside.

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
    except (OSError, SyntaxError, ValueError, EOFError):  # Pillow's ways to say that a file is damaged
        raise UnusableImage("damaged or cut off") from None


def _ends_well(path: Path, kind: str, length: int) -> bool:
    with path.open("rb") as file:
        start = file.read(12)
        file.seek(max(0, length - _TAIL))
        tail = file.read()
    if kind == "PNG":
        return b"IEND" in tail[-12:]
    if kind == "JPEG":
        return b"\xff\xd9" in tail
    if kind == "WEBP":
        return int.from_bytes(start[4:8], "little") + 8 <= length
    if kind == "BMP":
        return 0 < int.from_bytes(start[2:6], "little") <= length
    return False
