"""Inception features as clean-fid computes them (Parmar et al. 2022).

clean-fid imports torchvision, which takes seconds, so it is imported inside the functions.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from freeflow_core.errors import ConfigError, DownloadError
from freeflow_core.plugin import WeightFile
from freeflow_core.torchvision_ops import ensure_torchvision_ops
from freeflow_core.weights import WeightStore
from freeflow_metrics.config import FeatureOptions
from freeflow_metrics.features import FeatureNetwork, SmallFeatures
from freeflow_metrics.plugin import INCEPTION

STATISTICS_URL = "https://www.cs.cmu.edu/~clean-fid/stats"
"""Where clean-fid keeps its reference statistics; it has no constant for it."""

Resizing = Literal["clean", "legacy-tensorflow"]


@final
class InceptionFeatures(FeatureNetwork):
    """The 2048 pooled features of Inception-v3 (Szegedy et al. 2016) in the port that clean-fid uses for FID and KID.

    Args:
        path: the file ``inception-2015-12-05.pt`` or its folder; None for the published weights ``inception``. The
            file is TorchScript, and loading it runs it: no other place is ever looked at.
        resize: ``clean``: clean-fid's anti-aliased bicubic; ``legacy-tensorflow``: inside the network, as the original
            TensorFlow code and hence ADM's reference statistics have it.

    Raises:
        ConfigError: no usable file at ``path``.
        DownloadError: no download without one.
    """

    dim = 2048
    letters = "id"

    def __init__(self, path: Path | None, resize: Resizing = "clean") -> None:
        ensure_torchvision_ops()
        from cleanfid.inception_torchscript import InceptionV3W

        file, inside = _find(path), resize == "legacy-tensorflow"
        try:
            super().__init__(
                f"inception/{resize}", InceptionV3W(str(file.parent), download=False, resize_inside=inside)
            )
        except (OSError, RuntimeError, AttributeError, ValueError) as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ConfigError(
                f"{file} is not clean-fid's Inception: {reason.rstrip('.')}. Expected the TorchScript file from "
                f"{INCEPTION.url}; download it again."
            ) from error
        self._resize = clean_resizer() if resize == "clean" else None

    def features(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ConfigError(
                f"Inception features need uint8 images of 1 or 3 channels, (N, C, H, W); "
                f"these are {images.dtype} of shape {tuple(images.shape)}."
            )
        pixels = images.expand(-1, 3, -1, -1)
        if self._resize is not None:
            resized = np.stack([self._resize(picture) for picture in pixels.cpu().permute(0, 2, 3, 1).numpy()])
            pixels = torch.from_numpy(resized).permute(0, 3, 1, 2)
        features: Tensor = self._network(pixels.to(self._device).float())
        return features.float()


def build_features(options: FeatureOptions) -> FeatureNetwork:
    """The chosen network, on the host.

    Raises:
        ConfigError, DownloadError: Inception's file is missing or unusable.
        CheckpointError: ``features_file`` cannot be read.
    """
    if options.features == "inception":
        return InceptionFeatures(options.inception_path, options.inception_resize)
    return SmallFeatures.chosen(options)


def _find(path: Path | None) -> Path:
    if path is None:
        return WeightStore().fetch(INCEPTION)
    file = path / INCEPTION.filename if path.is_dir() else path
    if not file.is_file() or file.name != INCEPTION.filename:
        raise ConfigError(
            f"inception_path is {str(path)!r}, where there is no file {INCEPTION.filename}. Expected that file or the "
            f"folder that holds it, under this name. It can be downloaded from {INCEPTION.url}; "
            "leave inception_path out to have that done."
        )
    return file


def clean_resizer() -> Callable[[np.ndarray], np.ndarray]:
    """clean-fid's resizing of one uint8 (H, W, 3) image to float32 (299, 299, 3): anti-aliased, not quantised."""
    ensure_torchvision_ops()
    from cleanfid.resize import build_resizer

    resize: Callable[[np.ndarray], np.ndarray] = build_resizer("clean")
    return resize


def fetch_statistics(name: str, resize: Resizing, split: str, resolution: int) -> Path:
    """clean-fid's own reference statistics, such as ``cifar10``, downloaded once. Raises ``DownloadError``."""
    file = f"{name}_{resize.replace('-', '_')}_{split}_{resolution}.npz".lower()
    summary = "reference_statistics, reference_split and reference_resolution as clean-fid's page lists them"
    try:
        return WeightStore().fetch(WeightFile(file, summary, file, url=f"{STATISTICS_URL}/{file}"))
    except DownloadError as error:
        raise DownloadError(f"{error} Or set reference_statistics to the path of a copy.") from None
