"""Verifiers prefer what they say they prefer."""

import dataclasses
import math
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
from freeflow_core.math.random import PhiloxDraws
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


def test_the_density_ratio_of_two_gaussians_is_found(builder):
    """Its logarithm is quadratic: x - 1/2 of N(1, 1) over N(0, 1), and x^2 / 4 - log(2) / 2 of deviations 2^.5 and 1."""
    verifier = builder.build("verifier", ComponentChoice(name="density-ratio", options={"penalty": 1e-6}))
    x = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    real = torch.stack([x[:10_000, 0] + 1, x[:10_000, 1] * 2**0.5], 1)
    verifier._mean, verifier._scale = torch.zeros(2).double(), torch.ones(2).double()
    found = verifier._fitted(real, x[10_000:])
    expected = torch.tensor([1.0, 0.0, 0.0, 0.25, -0.5 - math.log(2) / 2]).double()
    torch.testing.assert_close(found, expected, atol=0.08, rtol=0)


def test_the_density_ratio_prefers_what_the_student_lacks(builder, digits):
    source, images, labels = digits
    teacher = builder.teacher(ComponentChoice(name="digits"))
    student = builder.build("student", ComponentChoice(name="transformer"), teacher=teacher)
    student.load_teacher(teacher)
    codec = builder.build("codec", ComponentChoice(name="pixels"))
    whole = EvaluationContext(CPU, codec, teacher=teacher, student=student.eval(), reference=source)
    verifier = builder.build("verifier", ComponentChoice(name="density-ratio", options={"num_samples": 400}))
    verifier.prepare(whole)
    index = torch.arange(100)
    z = PhiloxDraws(9, index).noise("prior", tuple(student.sample_shape))
    with torch.no_grad():
        x = student.flow_map(z, torch.ones(100), torch.zeros(100), index % 10, torch.ones(100))
    fake = verifier.score(codec.decode(x), index % 10)
    assert verifier.score(images, labels).mean() > fake.mean() + 1
    for incomplete in (context(source), dataclasses.replace(whole, reference=None)):
        with pytest.raises(ConfigError):
            verifier.prepare(incomplete)
    with pytest.raises(ConfigError, match="per_class"):
        verifier.score(images[:1], torch.tensor([11]))


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
