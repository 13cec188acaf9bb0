"""The one door to clean-fid (Parmar et al. 2022): its Inception, its resizing, its kernel distance.

clean-fid imports torchvision, which takes seconds, so it is imported inside the functions.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import nn

from freeflow_core.torchvision_ops import ensure_torchvision_ops

INCEPTION_FILE = "inception-2015-12-05.pt"
"""The file name that clean-fid's loader expects."""

STATISTICS_URL = "https://www.cs.cmu.edu/~clean-fid/stats"
"""Where clean-fid keeps its reference statistics; it has no constant for it."""


def load_inception(folder: Path, resize_inside: bool) -> nn.Module:
    """clean-fid's Inception-v3 from ``folder``: pixels (N, 3, H, W) float in [0, 255] -> (N, 2048).

    The file is TorchScript, whose code is run: only call it with a folder the user named, or with the plugin's own
    download.

    Args:
        folder: holds ``inception-2015-12-05.pt``.
        resize_inside: resize any input to 299 as the original TensorFlow graph does; otherwise it must be 299.

    Raises:
        OSError, RuntimeError, AttributeError, ValueError: whatever torch says about a file of another kind.
    """
    ensure_torchvision_ops()
    from cleanfid.inception_torchscript import InceptionV3W

    network: nn.Module = InceptionV3W(str(folder), download=False, resize_inside=resize_inside)
    return network.eval()


def inception_url() -> str:
    """Where clean-fid downloads its Inception from."""
    ensure_torchvision_ops()
    from cleanfid import downloads_helper

    return str(downloads_helper.inception_url)


def clean_resizer() -> Callable[[np.ndarray], np.ndarray]:
    """clean-fid's resizing of one uint8 (H, W, 3) image to float32 (299, 299, 3): anti-aliased, not quantised."""
    ensure_torchvision_ops()
    from cleanfid.resize import build_resizer

    resize: Callable[[np.ndarray], np.ndarray] = build_resizer("clean")
    return resize


def kernel_distance(first: np.ndarray, second: np.ndarray, num_subsets: int, subset_size: int) -> float:
    """clean-fid's KID of features (N, F) and (M, F). It draws from numpy's *global* generator."""
    ensure_torchvision_ops()
    from cleanfid import fid

    return float(fid.kernel_distance(first, second, num_subsets=num_subsets, max_subset_size=subset_size))
