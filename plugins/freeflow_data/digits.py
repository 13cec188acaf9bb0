"""scikit-learn's handwritten digits: real data that ships with a dependency and trains in a minute on a CPU."""

from __future__ import annotations

from typing import Self, final

import numpy as np
import torch
from sklearn.datasets import load_digits

from freeflow_core.config import ComponentConfig
from freeflow_core.interfaces import BuildContext
from freeflow_data.augmentations import build_augmentation
from freeflow_data.config import DigitsConfig
from freeflow_data.in_memory import ImageSet, InMemorySource
from freeflow_data.split import stratified_split

_MAX_GREY = 16
_NUM_CLASSES = 10


@final
class DigitsSource(InMemorySource):
    """1797 images (1, 8, 8) of the digits 0 to 9, held out by class (Alpaydin & Kaynak 1998, UCI 80)."""

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        """Raises ``ConfigError`` when ``held_out`` leaves a class without a training image."""
        assert isinstance(config, DigitsConfig)
        digits = load_all_digits()
        assert digits.labels is not None
        training, held_out = stratified_split(digits.labels.numpy(), config.held_out, config.split_seed)
        kept = digits.take(held_out) if len(held_out) else None
        return cls(digits.take(training), kept, _NUM_CLASSES, config.seed, build_augmentation(config))


def load_all_digits() -> ImageSet:
    """All 1797 images; grey values 0..16 become round(v * 255 / 16)."""
    bunch = load_digits()
    grey = np.rint(bunch.images * (255 / _MAX_GREY)).astype(np.uint8)
    return ImageSet(torch.from_numpy(grey[:, None]), torch.from_numpy(bunch.target.astype(np.int64)))
