"""Sample grids and the comparison picture."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from freeflow_core.files import replacing

_SMALLEST_TILE = 64
_GAP = 2
_HEADER = 22


def grid_image(images: Tensor, columns: int) -> Tensor:
    """uint8 (N, C, H, W) as one uint8 picture (3, rows * H', columns * W'), small images enlarged pixel by pixel."""
    tiles = _enlarge(_rgb(images.cpu()))
    rows = math.ceil(len(tiles) / columns)
    height, width = tiles.shape[2] + _GAP, tiles.shape[3] + _GAP
    canvas = torch.full((3, rows * height - _GAP, columns * width - _GAP), 255, dtype=torch.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * height, i % columns * width
        canvas[:, top : top + tile.shape[1], left : left + tile.shape[2]] = tile
    return canvas


def comparison_image(rows: Sequence[tuple[str, Tensor]], headers: Sequence[str]) -> Tensor:
    """Labelled rows of equally many uint8 images (N, C, H, W) under ``headers``: uint8 (3, H, W)."""
    strips = [_array(grid_image(images, len(images))) for _, images in rows]
    font = ImageFont.load_default(size=13)
    margin = 20 + round(max(font.getlength(label) for label, _ in rows))
    width = max(s.shape[1] for s in strips) + margin
    height = sum(s.shape[0] + _GAP for s in strips) + _HEADER
    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture)
    tile = (strips[0].shape[1] + _GAP) / max(1, len(rows[0][1]))
    for i, header in enumerate(headers):
        pen.text((margin + (i + 0.5) * tile, _HEADER / 2), header, fill="black", font=font, anchor="mm")
    top = _HEADER
    for (label, _), strip in zip(rows, strips, strict=True):
        pen.text((8, top + strip.shape[0] / 2), label, fill="black", font=font, anchor="lm")
        picture.paste(Image.fromarray(strip), (margin, top))
        top += strip.shape[0] + _GAP
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def scatter_image(clouds: Sequence[tuple[str, Tensor]], size: int = 360) -> Tensor:
    """Point clouds (N, 2), one panel each, on common axes: uint8 (3, H, W)."""
    everything = torch.cat([points for _, points in clouds]).double().cpu()
    low, high = everything.amin(0), everything.amax(0)
    centre, span = (low + high) / 2, float((high - low).max()) * 1.1 + 1e-9
    picture = Image.new("RGB", (size * len(clouds), size + _HEADER), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=13)
    for panel, (label, points) in enumerate(clouds):
        pen.text((panel * size + size / 2, _HEADER / 2), label, fill="black", font=font, anchor="mm")
        places = ((points.double().cpu() - centre) / span + 0.5) * (size - 8) + 4
        for x, y in places.tolist():
            left, top = panel * size + x, _HEADER + size - y
            pen.ellipse((left - 1, top - 1, left + 1, top + 1), fill=(31, 90, 166))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def save_image(image: Tensor, path: Path) -> None:
    """Write a uint8 (1|3, H, W) picture: as lossless WebP when the name ends in ``.webp``, else as PNG."""
    options: dict[str, Any] = {"format": "WEBP", "lossless": True} if path.suffix == ".webp" else {"format": "PNG"}
    with replacing(path, sync=False) as temporary:
        Image.fromarray(_array(_rgb(image[None])[0])).save(temporary, **options)


def _array(image: Tensor) -> np.ndarray:
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def _rgb(images: Tensor) -> Tensor:
    """Three channels; of states that are no images, such as undecoded latents, the first three, or the first alone."""
    return images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)


def _enlarge(images: Tensor) -> Tensor:
    factor = max(1, _SMALLEST_TILE // images.shape[-1])
    return images.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
