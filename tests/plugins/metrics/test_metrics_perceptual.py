"""The perceptual distance: its formula, and a gradient through it and through a codec."""

import pytest
import torch
from freeflow_metrics.config import PerceptualConfig
from freeflow_metrics.features import SmallFeatures
from freeflow_metrics.perceptual import PerceptualDistance
from torch.nn import functional

from freeflow_core.config import ComponentChoice
from freeflow_core.engine.build import Builder
from freeflow_core.errors import ConfigError


def pictures(seed=0, shape=(1, 8, 8)):
    return torch.rand(3, *shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_it_is_the_distance_of_unit_activations(build_context):
    first, second = pictures(), pictures(1)
    network = SmallFeatures.packaged("digits")
    expected = torch.zeros(3)
    for a, b in zip(network.layers(first), network.layers(second), strict=True):
        cosine = functional.cosine_similarity(a, b, dim=1)
        expected += (2 - 2 * cosine).flatten(1).mean(1)
    distance = PerceptualDistance.from_config(PerceptualConfig(), build_context)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # activations are compared in float32
        found = distance.between(first, second)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert len(network.layers(first)) == 3
    with pytest.raises(ConfigError, match="digits"):
        distance.between(pictures(shape=(1, 28, 28)), pictures(shape=(1, 28, 28)))


def test_gradients_reach_latents_through_the_codec(registry):
    builder = Builder(registry, torch.device("cpu"), 0)
    codec = builder.build("codec", ComponentChoice(name="small-vae"))
    distance = builder.build("distance", ComponentChoice(name="perceptual", options={"features": "mnist"}))
    x, target = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = distance.between(codec.decode_with_gradient(x), codec.decode_with_gradient(target)).sum()
    (gradient,) = torch.autograd.grad(found, x)
    closer = x - 0.1 * gradient / gradient.norm()
    assert distance.between(codec.decode_with_gradient(closer), codec.decode_with_gradient(target)).sum() < found
