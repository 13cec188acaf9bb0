"""Networks that turn images into features, and how evaluators of one batch share them."""

from __future__ import annotations

import hashlib
import importlib.resources
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from freeflow_core.errors import ConfigError, DownloadError
from freeflow_core.interfaces import EvaluationBatch
from freeflow_core.network_file import build_network, load_network
from freeflow_core.plugin import WeightFile
from freeflow_core.torchvision_ops import ensure_torchvision_ops
from freeflow_core.types import NetworkState
from freeflow_core.weights import WeightStore
from freeflow_metrics.config import ClassifierOptions, FeatureOptions
from freeflow_metrics.plugin import INCEPTION

FAMILY = "freeflow_metrics.small_features"
ASSETS = {"digits": "assets/digits-features.safetensors", "mnist": "assets/mnist-features.safetensors"}
"""Packaged networks by name; a page beside each, ``<name>-features.md``, says how it was made."""


STATISTICS_URL = "https://www.cs.cmu.edu/~clean-fid/stats"
"""Where clean-fid keeps its reference statistics; it has no constant for it."""

Resizing = Literal["clean", "legacy-tensorflow"]


class FeatureNetwork(ABC):
    """A frozen network from images to features.

    Args:
        name: identifies the features: equal names mean equal features.
        network: whatever makes them.
    """

    dim: int
    """Number of features F."""
    letters: str = "d"
    """After F for Fréchet or K for kernel, how scores are called: FID and KID belong to Inception alone."""

    def __init__(self, name: str, network: nn.Module) -> None:
        self.name = name
        self._network = network.eval().requires_grad_(False)
        self._device = torch.device("cpu")

    def to(self, device: torch.device) -> None:
        self._network.to(device)
        self._device = device

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """(N, F) features of uint8 images (N, C, H, W), on the network's device.

        Raises ``ConfigError`` for images the network was not made for.
        """

    def layers(self, images: Tensor) -> Sequence[Tensor]:
        """Activations (N, F_l, ...) of float images (N, C, H, W) in [-1, 1], with gradient.

        Raises ``ConfigError`` as :meth:`features`, and where there is no gradient.
        """
        raise ConfigError(f"The features {self.name!r} have no layers to look at with gradient.")


@torch.no_grad()
def batch_features(network: FeatureNetwork, batch: EvaluationBatch) -> Tensor:
    """(N, F) float64 features on the host, computed once per batch for all evaluators with this network."""
    features: Tensor = batch.memo(
        f"freeflow_metrics.features:{network.name}", lambda: network.features(batch.images).cpu().double()
    )
    return features


@torch.no_grad()
def image_features(network: FeatureNetwork, images: Tensor) -> Iterator[Tensor]:
    """(n, F) float64 features on the host of ``images`` (M, C, H, W), at most 250 at a time."""
    for part in torch.split(images, 250):
        yield network.features(part).cpu().double()


@final
class SmallNetwork(nn.Module):
    """Convolutional classifier of small images whose last hidden layer, before its non-linearity, is the feature.

    Strides instead of pooling and GELU throughout, so features are smooth in the pixels; taken before the
    non-linearity they are close to Gaussian, which is what the Fréchet distance assumes.

    ``image_shape`` is (C, H, W), ``dim`` the number of features; ``widths`` and ``strides`` are the convolutions'.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 8, 8),
        dim: int = 48,
        num_classes: int = 10,
        widths: tuple[int, int, int] = (24, 32, 48),
        strides: tuple[int, int, int] = (1, 2, 2),
    ) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.config = {
            "image_shape": list(image_shape),
            "dim": dim,
            "num_classes": num_classes,
            "widths": list(widths),
            "strides": list(strides),
        }
        channels, *sides = image_shape
        for stride in strides:
            sides = [math.ceil(side / stride) for side in sides]
        first, second, third = widths
        self.conv1 = nn.Conv2d(channels, first, 3, strides[0], padding=1)
        self.conv2 = nn.Conv2d(first, second, 3, strides[1], padding=1)
        self.conv3 = nn.Conv2d(second, third, 3, strides[2], padding=1)
        self.embed = nn.Linear(third * math.prod(sides), dim)
        self.classify = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, dim) of images (N, C, H, W) in [-1, 1]."""
        features: Tensor = self.embed(self.activations(x)[-1].flatten(1))
        return features

    def activations(self, x: Tensor) -> list[Tensor]:
        """Of the three convolutions, (N, width, h, w) each."""
        found = [x]
        for layer in (self.conv1, self.conv2, self.conv3):
            found.append(functional.gelu(layer(found[-1])))
        return found[1:]

    def logits(self, features: Tensor) -> Tensor:
        """(N, num_classes) logits of features (N, dim)."""
        logits: Tensor = self.classify(functional.gelu(features))
        return logits


@final
class SmallFeatures(FeatureNetwork):
    """A :class:`SmallNetwork` with its weights: packaged, or trained by the user.

    Raises:
        CheckpointError: ``state`` does not describe such a network.
    """

    def __init__(self, state: NetworkState, name: str) -> None:
        network = build_network(SmallNetwork, state, FAMILY, f"feature network {name!r}")
        super().__init__(name, network)
        self._classifier = network
        self.dim = network.embed.out_features
        self.num_classes = network.classify.out_features

    @classmethod
    def packaged(cls, name: str = "digits") -> SmallFeatures:
        with importlib.resources.as_file(importlib.resources.files("freeflow_metrics") / ASSETS[name]) as path:
            return cls(load_network(path)[0], name)

    @classmethod
    def from_file(cls, path: Path) -> SmallFeatures:
        """A network of the user's own. Raises ``CheckpointError`` for a file that cannot be read or is no such network.

        Its features are named by the file's content, so that evaluators share them where the files are alike.
        """
        path = path.expanduser()
        state, _ = load_network(path)
        return cls(state, f"file:{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}")

    @classmethod
    def chosen(cls, options: ClassifierOptions) -> SmallFeatures:
        """The network of the options, on the host. Raises ``CheckpointError`` as :meth:`from_file`."""
        return cls.packaged(options.features) if options.features_file is None else cls.from_file(options.features_file)

    def features(self, images: Tensor) -> Tensor:
        self._check(images, torch.uint8)
        features: Tensor = self._network(images.to(self._device).float() / 127.5 - 1)
        return features

    def layers(self, images: Tensor) -> list[Tensor]:
        self._check(images, torch.float32)
        return self._classifier.activations(images.to(self._device))

    def _check(self, images: Tensor, dtype: torch.dtype) -> None:
        expected = self._classifier.image_shape
        if images.dtype != dtype or tuple(images.shape[1:]) != expected:
            others = ", ".join(name for name in (*ASSETS, "inception") if name != self.name)
            raise ConfigError(
                f"The features {self.name!r} are for images of shape {expected}, but these are "
                f"{images.dtype} of shape {tuple(images.shape[1:])}. Choose other features ({others}), e.g. "
                "features: inception for photographs, or train a network for these images: "
                "`python -m freeflow_metrics.train_features --help`."
            )

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """(N, num_classes) logits of its classifier on the host, from features (N, F)."""
        return self._classifier.logits(features.to(self._device, torch.float32)).cpu()


@final
class InceptionFeatures(FeatureNetwork):
    """The 2048 pooled features of Inception-v3 (Szegedy et al. 2016) in clean-fid's port (Parmar et al. 2022).

    clean-fid imports torchvision, which takes seconds, so it is imported inside the functions.

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

    def layers(self, images: Tensor) -> tuple[Tensor]:
        """The pooled features alone; resized by torch, since clean-fid's own resizing has no gradient."""
        pixels = (images.to(self._device) + 1) * 127.5
        if self._resize is not None:
            pixels = functional.interpolate(pixels, size=(299, 299), mode="bicubic", antialias=True)
        return (self._network(pixels.expand(-1, 3, -1, -1)).float(),)


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
