"""Random changes to training images, composable, each a function of (seed, image number) alone."""

from freeflow_data.augmentations.base import Augmentation, Dice
from freeflow_data.augmentations.build import build_augmentation
from freeflow_data.augmentations.chain import AugmentationChain

__all__ = ["Augmentation", "AugmentationChain", "Dice", "build_augmentation"]
