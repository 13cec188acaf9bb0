"""Few-step sampling needs one path: a network of another one is converted by its teacher, and its exact map kept."""

import math

import pytest
import torch
from freeflow_networks.calling import Conditions, ForeignNetwork
from freeflow_networks.config import OwnNetworkOptions
from freeflow_networks.teacher import OwnNetworkTeacher
from freeflow_samplers.config import FewStepConfig
from freeflow_samplers.flow_map import FewStepSampler
from networks_support import ExactNetwork
from test_networks_conversions import convention
from torch import nn

from freeflow_core.interfaces import StartTimes
from freeflow_core.math.flow import uniform_grid
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.types import Guidance

ROWS, STD = 4_000, 0.6
PATHS = {
    "linear": ("velocity", "linear", "data-at-0", "noise-minus-data"),
    "cosine": ("v-prediction", "cosine", "data-at-0", "noise-minus-data"),
    "variance-preserving": ("noise", "vp", "data-at-0", "noise-minus-data"),
}


class ExactMap(nn.Module):
    """The flow map of a velocity field v(x, t), by 40 steps of the midpoint rule."""

    start_times = StartTimes.ANY

    def __init__(self, field):
        super().__init__()
        self.field = field

    def flow_map(self, x, t, s, condition, guidance):
        step = (t - s) / 40
        for _ in range(40):
            middle = x - step[:, None] / 2 * self.field(x, t)
            x, t = x - step[:, None] * self.field(middle, t - step / 2), t - step
        return x


def spread(field, steps):
    draws = PhiloxDraws(0, torch.arange(ROWS), dtype=torch.float64)
    sampler = FewStepSampler(FewStepConfig(renoise=True))
    unguided = Guidance(torch.ones(ROWS, dtype=torch.float64))
    x = sampler.sample(ExactMap(field), draws.noise("z", (1,)), uniform_grid(steps), None, unguided, draws).x
    return float(x.std())


@pytest.mark.parametrize("path", PATHS)
def test_the_exact_map_keeps_the_spread_in_any_number_of_steps(path):
    network = ExactNetwork(*PATHS[path], convention(*PATHS[path]).scale, mean=(0.5,), std=(STD,))
    foreign = ForeignNetwork(network, OwnNetworkOptions(sample_shape=(2,), arguments=("x", "t")), Conditions(), "test")
    teacher = OwnNetworkTeacher(foreign, convention(*PATHS[path]), (1,))
    for steps in (1, 2, 4):
        assert spread(lambda x, t: teacher.velocity(x, t, None), steps) == pytest.approx(STD, rel=0.04)


def test_the_map_of_another_path_does_not():
    """The velocity of the cosine path taken as it is: what converting is for."""

    def cosine(x, t):
        alpha, sigma = torch.cos(math.pi / 2 * t)[:, None], torch.sin(math.pi / 2 * t)[:, None]
        return math.pi / 2 * alpha * sigma * (1 - STD**2) / (alpha**2 * STD**2 + sigma**2) * x

    assert spread(cosine, 1) == pytest.approx(STD, rel=0.04)
    assert spread(cosine, 4) < 0.8 * STD
