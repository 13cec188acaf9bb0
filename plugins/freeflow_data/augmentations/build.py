"""From options to a chain of augmentations."""

from __future__ import annotations

from collections import Counter

from freeflow_data.augmentations.base import Augmentation
from freeflow_data.augmentations.chain import AugmentationChain, Link
from freeflow_data.augmentations.colour import Colour
from freeflow_data.augmentations.cutout import Cutout
from freeflow_data.augmentations.elastic import Elastic
from freeflow_data.augmentations.flip import Flip
from freeflow_data.augmentations.rigid import Rotation, Shift
from freeflow_data.config import AugmentationConfig, ImageOptions


def build_augmentation(options: ImageOptions) -> AugmentationChain | None:
    """The chain that ``options`` describe; None when nothing in it would change an image."""
    links: list[Link] = []
    seen: Counter[str] = Counter()
    for choice in options.augment:
        seen[choice.name] += 1
        strength = choice.strength * options.augment_strength
        if strength > 0 and choice.probability > 0:
            # By name and occurrence: taking one augmentation away leaves the draws of the others as they were.
            stream = f"{choice.name}/{seen[choice.name]}"
            links.append(Link(_build(choice, strength), choice.probability, stream))
    return AugmentationChain(links, options.seed) if links else None


def _build(choice: AugmentationConfig, strength: float) -> Augmentation:
    match choice.name:
        case "flip":
            return Flip(strength)
        case "shift":
            return Shift(strength, choice.padding)
        case "rotation":
            return Rotation(strength, choice.padding)
        case "elastic":
            return Elastic(strength, choice.padding)
        case "colour":
            return Colour(strength)
        case "cutout":
            return Cutout(strength)
