"""clean-fid's Inception behind its adapter, with a stand-in for the 90 MB file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from freeflow_metrics import features
from freeflow_metrics.config import FrechetConfig, KernelConfig
from freeflow_metrics.distance import KernelEvaluator
from freeflow_metrics.features import InceptionFeatures
from freeflow_metrics.frechet import FrechetEvaluator, reference_statistics
from freeflow_metrics.plugin import INCEPTION
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

from freeflow_core.errors import ConfigError, DownloadError
from freeflow_core.interfaces import EvaluationBatch

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


class StandInLayers(nn.Module):
    """(N, 3, H, W) -> (N, 2048): channel means, repeated with growing factors."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.linspace(0, 1, 2048))

    def forward(self, x):
        return x.mean(dim=(2, 3))[:, :1] + self.scale * x.mean(dim=(2, 3))[:, 2:]


class StandInInception(nn.Module):
    """The interface of the TorchScript file that clean-fid reads."""

    def __init__(self):
        super().__init__()
        self.layers = StandInLayers()

    def forward(self, x, return_features: bool = False):  # TorchScript reads this annotation
        return self.layers((x - 128) / 128) + 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inception")
    torch.jit.script(StandInInception()).save(str(folder / INCEPTION.filename))
    return folder


def images(channels=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (4, channels, 16, 16), generator=generator, dtype=torch.uint8)


def test_features_follow_cleanfid_s_resizing(folder):
    pictures = images()
    resize = features.clean_resizer()
    resized = np.stack([resize(p) for p in pictures.permute(0, 2, 3, 1).numpy()])
    assert resized.shape == (4, 299, 299, 3)
    expected = StandInLayers()((torch.from_numpy(resized).permute(0, 3, 1, 2) - 128) / 128)
    for path in (folder, folder / INCEPTION.filename):
        network = InceptionFeatures(path)
        found = network.features(pictures)
        assert found.shape == (4, network.dim)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_legacy_resizing_happens_inside_the_network(folder):
    network = InceptionFeatures(folder, "legacy-tensorflow")
    expected = StandInInception()(images().float())
    torch.testing.assert_close(network.features(images()), expected)
    assert network.name != InceptionFeatures(folder).name


def test_grey_images_are_repeated_to_three_channels(folder):
    grey = images(channels=1)
    network = InceptionFeatures(folder)
    torch.testing.assert_close(network.features(grey), network.features(grey.repeat(1, 3, 1, 1)))
    with pytest.raises(ConfigError, match="1 or 3 channels"):
        network.features(images(channels=2))


@pytest.mark.parametrize("resize", ["clean", "legacy-tensorflow"])
def test_pooled_features_have_a_gradient_too(folder, resize):
    smooth = functional.interpolate(images(channels=1).float()[:, :, :4, :4] / 127.5 - 1, size=16, mode="bilinear")
    pictures = smooth.requires_grad_()
    network = InceptionFeatures(folder, resize)
    (layer,) = network.layers(pictures)
    expected = network.features(((smooth + 1) * 127.5).round().to(torch.uint8))
    torch.testing.assert_close(layer, expected, rtol=0.02, atol=0.02)
    assert torch.autograd.grad(layer.sum(), pictures)[0].abs().max() > 0


def test_scores_bear_the_established_names(folder, evaluation_context, score_row, monkeypatch):
    monkeypatch.setattr("freeflow_metrics.frechet.frechet_distance", lambda *_: 1.0)  # 2048 dimensions take seconds
    options = {"features": "inception", "inception_path": str(folder)}
    frechet = FrechetEvaluator(FrechetConfig(**options))
    kernel = KernelEvaluator(KernelConfig(**options, num_subsets=1))
    frechet.prepare(evaluation_context(images()))
    kernel.prepare(evaluation_context(images()))
    kernel.observe_reference(EvaluationBatch(images(), None))
    with pytest.warns(UserWarning, match="2048 feature dimensions"):
        assert set(score_row(frechet, "student", images())) == {"fid_data"}
    assert set(score_row(kernel, "student", images())) == {"kid_data", "kid_teacher"}


def test_files_that_cannot_be_used_are_explained(tmp_path):
    with pytest.raises(ConfigError, match="inception_path is"):
        InceptionFeatures(tmp_path / "nowhere.pt")
    (tmp_path / INCEPTION.filename).write_bytes(b"not TorchScript")
    with pytest.raises(ConfigError, match="is not clean-fid's Inception"):
        InceptionFeatures(tmp_path)
    with pytest.raises(ValidationError, match="set features: inception"):
        FrechetConfig(inception_path="somewhere")


def test_what_is_named_is_fetched_into_the_cache_and_not_where_that_is_switched_off(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setenv("FREEFLOW_CACHE", str(tmp_path))
    statistics = FrechetConfig(features="inception", reference_statistics="cifar10")
    with monkeypatch.context() as watched:
        watched.setattr(features.WeightStore, "fetch", lambda _, weight: asked.append(weight.url) or Path("x"))
        for build in (lambda: InceptionFeatures(None), lambda: reference_statistics(statistics, 2048)):
            with pytest.raises(ConfigError):
                build()
    assert [url.rsplit("/", 1)[-1] for url in asked] == [INCEPTION.filename, "cifar10_clean_train_32.npz"]
    monkeypatch.setenv("FREEFLOW_OFFLINE", "1")
    with pytest.raises(DownloadError, match="FREEFLOW_OFFLINE"):
        InceptionFeatures(None)
