"""States that a codec made beforehand, so that training needs neither the codec nor the images."""

from __future__ import annotations

from typing import Self, final

import torch
from torch import Tensor

from freeflow_core.config import ComponentConfig
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import BuildContext
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.types import Batch, Condition
from freeflow_data.config import LatentsConfig
from freeflow_data.indexed import IndexedSource
from freeflow_data.latents_folder import LatentsFolder
from freeflow_data.ordering import Rows


@final
class LatentsSource(IndexedSource):
    """Float32 states of a folder written by ``freeflow encode``, with their labels.

    Where the codec has a posterior, image number i of the run is mean + std * noise, the noise a function of the seed
    and i alone; so is the choice between an image and its mirrored copy.

    Args:
        folder: the states.
        sample: draw from the posterior, where there is one; else take its mean.
        flip: take the mirrored copy of half the images, at random.
        seed: of order and draws, in [0, 2**63).
    """

    def __init__(self, folder: LatentsFolder, sample: bool, flip: bool, seed: int) -> None:
        super().__init__(len(folder), seed)
        manifest = folder.manifest
        self._folder = folder
        self._sample = sample and manifest.has_std
        self._flip = flip
        self._seed = seed
        self.encoded_by = manifest.codec
        self.num_classes = manifest.num_classes
        if len(manifest.state_shape) == 3:
            channels, height, width = manifest.state_shape
            self.image_shape = (channels, height, width)

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        """Raises ``ConfigError`` for a folder that is missing, incomplete or damaged, or has no mirrored copies."""
        assert isinstance(config, LatentsConfig)
        folder = LatentsFolder(config.path.expanduser(), config.on_error)
        flipped = folder.manifest.has_flipped
        if config.flip and not flipped:
            raise ConfigError(
                f"source.flip is set, but the latents in {folder.path} have no mirrored copies. Encode them again into "
                "another folder with `freeflow encode --flip`, or leave source.flip out."
            )
        return cls(folder, config.sample, flipped if config.flip is None else config.flip, config.seed)

    def read(self, rows: Rows, numbers: Rows) -> Batch:
        draws = PhiloxDraws(self._seed, torch.from_numpy(numbers))
        x = self._states("mean", rows, draws)
        if self._sample:
            x = x + self._states("std", rows, draws) * draws.noise("latents/posterior", tuple(x.shape[1:]))
        return Batch(x, self._folder.condition(rows))

    def held_out(self) -> tuple[Tensor, Condition] | None:
        """None: there are no images here. Name a source of images as ``reference``."""
        return None

    def _states(self, name: str, rows: Rows, draws: PhiloxDraws) -> Tensor:
        states = self._folder.take(name, rows)
        if self._flip:
            mirrored = draws.uniform("latents/flip") < 0.5
            states[mirrored] = self._folder.take(f"{name}.flipped", rows[mirrored.numpy()])
        return states.float()
