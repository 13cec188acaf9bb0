"""The mixture as data: exact, resumable, with the teacher's classes, and never the run's own random numbers."""

import math

import pytest
import torch
from freeflow_toy.config import GaussianMixtureConfig, MixtureSourceConfig, StatesConfig
from freeflow_toy.gaussian_mixture import GaussianMixtureTeacher, MixtureSource, StatesCodec

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import BuildContext
from freeflow_core.math.random import PhiloxDraws

CONTEXT = BuildContext(torch.device("cpu"), 0, lambda *_: None)
OPTIONS = {"layout": "ring", "num_modes": 4, "std": 0.05, "num_classes": 2}


def source(**options):
    return MixtureSource.from_config(MixtureSourceConfig(**{**OPTIONS, **options}), CONTEXT)


def first(made, count):
    batch = next(made.batches(0, count, 0, 1))
    return batch.x, batch.condition


def test_samples_depend_on_the_seed():
    assert not torch.equal(first(source(seed=1), 24)[0], first(source(), 24)[0])


def test_states_are_exact_samples_of_their_class():
    made = source()
    x, labels = first(made, 4000)
    assert x.dtype is torch.float32
    assert made.num_classes == 2
    angle = torch.atan2(x[:, 1], x[:, 0])
    mode = torch.round(angle / (math.pi / 2)).long() % 4
    assert torch.equal(mode % 2, labels)  # component i has class i mod 2, as the teacher says
    centre = 2 * torch.stack([torch.cos(mode * math.pi / 2), torch.sin(mode * math.pi / 2)], 1)
    assert abs(float((x - centre).std()) - 0.05) < 0.002
    assert abs(float(labels.double().mean()) - 0.5) < 0.03
    assert torch.bincount(mode, minlength=4).min() > 850


def test_equal_seeds_do_not_give_the_runs_own_numbers():
    teacher = GaussianMixtureTeacher.from_config(GaussianMixtureConfig(**OPTIONS), CONTEXT)
    run = teacher.sample_condition(PhiloxDraws(0, torch.arange(200)))
    assert 40 < int((run != first(source(seed=0), 200)[1]).sum()) < 160


def test_held_out_samples_are_others():
    assert source().held_out() is None
    x, labels = source(held_out=50).held_out()
    assert x.shape == (50, 2)
    assert labels.shape == (50,)
    assert torch.cdist(x.double(), first(source(), 200)[0].double()).min() > 0
    assert torch.equal(source(held_out=50).held_out()[0], x)
    assert torch.equal(source(held_out=20).held_out()[0], x[:20])


def test_states_codec_passes_floats_and_refuses_images():
    codec = StatesCodec(StatesConfig())
    x = torch.randn(3, 2)
    assert codec.encode(x) is x
    with pytest.raises(ConfigError, match="codec: pixels"):
        codec.encode(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    assert codec.decode(torch.tensor([-2.0, -1, 0, 1, 9])).tolist() == [0, 0, 128, 255, 255]
