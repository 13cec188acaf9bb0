"""Inception features, as clean-fid computes them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_core.weights import cache_folder
from freeflow_metrics import cleanfid_adapter
from freeflow_metrics.download import fetch_once
from freeflow_metrics.features import FeatureNetwork


@final
class InceptionFeatures(FeatureNetwork):
    """The 2048 pooled features of Inception-v3 (Szegedy et al. 2016) in the port that clean-fid uses for FID and KID.

    Args:
        path: the file ``inception-2015-12-05.pt`` or its folder; None for the plugin's own download, made once into
            the cache of published weights. The file is TorchScript, and loading it runs it: no other place is ever
            looked at.
        resize: ``clean``: clean-fid's anti-aliased bicubic; ``legacy-tensorflow``: inside the network, as the original
            TensorFlow code and hence ADM's reference statistics have it.

    Raises:
        ConfigError: no usable file at ``path``, or no download without one.
    """

    dim = 2048

    def __init__(self, path: Path | None, resize: Literal["clean", "legacy-tensorflow"] = "clean") -> None:
        self.name = f"inception/{resize}"
        file = _find(path)
        try:
            self._network = cleanfid_adapter.load_inception(file.parent, resize == "legacy-tensorflow")
        except (OSError, RuntimeError, AttributeError, ValueError) as error:
            raise ConfigError(
                f"{file} is not clean-fid's Inception: {_first_line(error)}. Expected the TorchScript file from "
                f"{cleanfid_adapter.inception_url()}; download it again."
            ) from error
        self._resize = cleanfid_adapter.clean_resizer() if resize == "clean" else None
        self._network.requires_grad_(False)
        self._device = torch.device("cpu")

    def to(self, device: torch.device) -> None:
        self._network.to(device)
        self._device = device

    def features(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ConfigError(
                f"Inception features need uint8 images of 1 or 3 channels, (N, C, H, W); "
                f"these are {images.dtype} of shape {tuple(images.shape)}."
            )
        coloured = images.expand(-1, 3, -1, -1)
        pixels = coloured.float() if self._resize is None else self._resized(coloured)
        features: Tensor = self._network(pixels.to(self._device))
        return features.float()

    def _resized(self, images: Tensor) -> Tensor:
        assert self._resize is not None
        pictures = images.cpu().permute(0, 2, 3, 1).numpy()
        return torch.from_numpy(np.stack([self._resize(p) for p in pictures])).permute(0, 3, 1, 2)


def _find(path: Path | None) -> Path:
    name = cleanfid_adapter.INCEPTION_FILE
    if path is None:
        return fetch_once(
            cleanfid_adapter.inception_url(),
            cache_folder(),
            "Without a network, copy that file from a machine that has one and set inception_path to it; "
            "or choose features: digits for 8x8 digits.",
        )
    file = path / name if path.is_dir() else path
    if not file.is_file() or file.name != name:
        raise ConfigError(
            f"inception_path is {str(path)!r}, where there is no file {name}. Expected that file or the folder that "
            f"holds it, under this name. It can be downloaded from {cleanfid_adapter.inception_url()}; "
            "leave inception_path out to have that done."
        )
    return file


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")
