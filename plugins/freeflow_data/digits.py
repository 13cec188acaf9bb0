"""scikit-learn's handwritten digits: real data that ships with a dependency and trains in a minute on a CPU."""

from __future__ import annotations

from typing import final

import numpy as np
import torch
from sklearn.datasets import load_digits

from freeflow_data.config import DigitsConfig
from freeflow_data.images import Images, ImageSource


@final
class DigitsSource(ImageSource):
    """1797 images (1, 8, 8) of the digits 0 to 9, held out by class (Alpaydin & Kaynak 1998, UCI 80)."""

    def __init__(self, config: DigitsConfig) -> None:
        """Raises ``ConfigError`` when ``held_out`` leaves a class without a training image."""
        super().__init__(*load_all_digits().split(config.held_out, config.split_seed), 10, config)


def load_all_digits() -> Images:
    """All 1797 images; grey values 0..16 become round(v * 255 / 16)."""
    bunch = load_digits()
    grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    return Images.in_memory(torch.from_numpy(grey[:, None]), torch.from_numpy(bunch.target.astype(np.int64)))
