"""Verifiers prefer what they say they prefer."""

import dataclasses
import sys
import types

import pytest
import torch
from freeflow_metrics.config import CallableVerifierConfig
from freeflow_metrics.verifiers import CallableVerifier

from freeflow_core.config import ComponentChoice
from freeflow_core.engine.build import Builder
from freeflow_core.errors import ConfigError, PluginError
from freeflow_core.interfaces import EvaluationContext
from freeflow_core.plugin import Manager, Registry

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def builder():
    return Builder(Registry(Manager.load()), CPU, 0)


@pytest.fixture(scope="module")
def digits(builder):
    source = builder.build("source", ComponentChoice(name="digits"))
    images, labels = source.held_out()
    return source, images[:200], labels[:200]


def context(source=None):
    return EvaluationContext(CPU, codec=None, reference=source)


def test_class_probability_prefers_the_class_asked_for(builder, digits):
    _, images, labels = digits
    verifier = builder.build("verifier", ComponentChoice(name="class-probability"))
    verifier.prepare(context())
    right, wrong = verifier.score(images, labels), verifier.score(images, (labels + 1) % 10)
    assert right.shape == (200,)
    assert (right > wrong).double().mean() > 0.97
    assert (right <= 0).all()
    for condition in (None, torch.full((200,), 10)):
        with pytest.raises(ConfigError, match="a class label from 0 to 9"):
            verifier.score(images, condition)


def test_centroids_are_those_of_the_real_images_of_a_class(builder, digits):
    source, images, labels = digits
    verifier = builder.build("verifier", ComponentChoice(name="feature-centroid"))
    verifier.prepare(context(source))
    right, wrong = verifier.score(images, labels), verifier.score(images, (labels + 1) % 10)
    assert (right > wrong).double().mean() > 0.95
    with pytest.raises(ConfigError, match=r"no real images of the classes \[11\]"):
        verifier.score(images, torch.full((200,), 11))
    with pytest.raises(ConfigError, match="there are none"):
        verifier.prepare(context())


def test_a_function_ranks(monkeypatch, build_context):
    module = types.ModuleType("my_verifier")
    module.brightness = lambda images, condition: images.float().flatten(1).mean(1)
    module.total = lambda images, condition: images.sum()
    monkeypatch.setitem(sys.modules, "my_verifier", module)

    trusted = dataclasses.replace(build_context, trusted=True)

    def build(name):
        return CallableVerifier.from_config(CallableVerifierConfig(function=name), trusted)

    with monkeypatch.context() as watched:
        watched.setattr("importlib.import_module", lambda name: pytest.fail("imported without a permission"))
        with pytest.raises(ConfigError, match="--trust"):
            CallableVerifier.from_config(CallableVerifierConfig(function="my_verifier:total"), build_context)
    images = torch.stack([torch.full((1, 4, 4), v, dtype=torch.uint8) for v in (3, 200)])
    assert build("my_verifier:brightness").score(images, None).tolist() == [3.0, 200.0]
    with pytest.raises(PluginError, match=r"my_verifier:total returned scores of shape \(\) for 2"):
        build("my_verifier:total").score(images, None)
    for name in ("my_verifier:none", "no_such_module_here:f"):
        with pytest.raises(ConfigError, match="cannot be imported"):
            build(name)
