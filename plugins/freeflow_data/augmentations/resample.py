"""Images looked up at other places."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from freeflow_data.config import Padding

_MODES = {"edge": "border", "reflect": "reflection", "black": "zeros"}


def resample(images: Tensor, x: Tensor, y: Tensor, padding: Padding) -> Tensor:
    """Bicubic values of float images (N, C, H, W) at columns ``x`` and rows ``y``, (N, H, W) in pixels from 0.

    ``padding`` says what lies outside: the edge's pixels again, the mirrored image, or black. Bicubic,
    because a bilinear look-up blurs, and several in a row blur more.
    """
    height, width = images.shape[-2:]
    # grid_sample counts from -1 to 1 between the outer edges of the border pixels.
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)
    return grid_sample(images, grid, mode="bicubic", padding_mode=_MODES[padding], align_corners=False)
