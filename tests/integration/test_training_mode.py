"""Layers in training: none mixes the rows of a batch, and what is scored has the statistics of what was trained."""

import logging

import pytest
import torch
from freeflow_toy.config import MLPStudentConfig
from freeflow_toy.mlp import MLPTrunk
from plugin_helpers import plugin
from run_helpers import TINY
from torch import nn

from freeflow_core import api
from freeflow_core.config.load import resolve
from freeflow_core.engine.build import Builder, build_components
from freeflow_core.engine.process import start_accelerator
from freeflow_core.engine.state import build_state
from freeflow_core.engine.trainer import Trainer
from freeflow_core.errors import PluginError
from freeflow_core.interfaces import AverageVelocityStudent
from freeflow_core.plugin import Component, Manager, Registry


class Counting(nn.Module):
    """Counts what it has seen, in training."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.seen += len(x)
        return x


class Centred(nn.Module):
    """Takes the mean of the batch off, in training: statistics that no class name tells."""

    def forward(self, x):
        return x - x.mean(0) if self.training else x


LAYERS = {"BatchNorm1d": lambda: nn.BatchNorm1d(2), "Counting": Counting, "Centred": Centred}


class Layered(MLPTrunk, AverageVelocityStudent):
    """The toy's student behind one more layer."""

    family = kind = "layered"
    options = MLPStudentConfig
    layer = "Counting"

    def __init__(self, config):
        super().__init__(config, 2)
        self.first = LAYERS[Layered.layer]()

    def forward(self, x_t, t, s, condition, guidance):
        return self.features(self.first(x_t), t, s, condition, guidance)

    def average_velocity(self, output, x_t, t, s):
        return output


@pytest.fixture
def manager(request):
    manager = Manager.load()
    component = Component("layered", f"{__name__}:Layered", "freeflow_toy.config:MLPStudentConfig", "A student")
    manager.register(plugin(students=[component]), "layered")
    return manager


def trainer_of(manager, layer, **changes):
    Layered.layer = layer
    settings = {**TINY, "name": "layered", "student": {**TINY["student"], "name": "layered"}, **changes}
    config = resolve(Registry(manager), settings)
    accelerator = start_accelerator(config.runtime)
    components = build_components(Builder(Registry(manager), accelerator.device, config.seed), config)
    return Trainer(config, components, build_state(config, components, accelerator), accelerator)


def test_batch_statistics_stay_as_they_are_and_are_told(manager, caplog):
    with caplog.at_level(logging.WARNING, "freeflow"):
        trainer = trainer_of(manager, "BatchNorm1d")
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert "'layered'" in told[0]
    assert "BatchNorm1d" in told[0]
    student = trainer.state.roles["student"].network
    weight = student.first.weight.detach().clone()
    for _ in range(3):
        trainer.step()
    assert torch.equal(student.first.running_mean, torch.zeros(2))
    assert not torch.equal(student.first.weight, weight)
    x, t, s = torch.randn(5, 2), torch.ones(5), torch.zeros(5)
    alone = torch.cat([student.flow_map(x[i : i + 1], t[:1], s[:1], None, None) for i in range(5)])
    torch.testing.assert_close(student.flow_map(x, t, s, None, None), alone)


def test_the_average_has_the_buffers_of_the_network(manager):
    trainer = trainer_of(manager, "Counting")
    for _ in range(3):
        trainer.step()
    role = trainer.state.roles["student"]
    assert float(role.network.first.seen) > 0
    assert torch.equal(role.ema.first.seen, role.network.first.seen)


def test_a_student_that_mixes_rows_in_training_is_refused(manager, tmp_path):
    Layered.layer = "Centred"
    config = resolve(Registry(manager), {**TINY, "name": "x", "student": {**TINY["student"], "name": "layered"}})
    with pytest.raises(PluginError, match=r"student 'layered' mixes the rows of a batch"):
        api.distill(config, output=tmp_path / "run", manager=manager)


def test_the_first_look_leaves_statistics_alone_and_scores_are_those_of_evaluation(manager, tmp_path):
    """Without an average the network in training is scored: as it will be used, and back to training afterwards."""
    Layered.layer = "Counting"
    changes = {"evaluation": {"num_samples": 32, "use_ema": False, "reference_steps": 2, "every_images": 32}}
    settings = {**TINY, **changes, "name": "x", "student": {**TINY["student"], "name": "layered"}}
    config = resolve(Registry(manager), settings)
    result = api.distill(config, output=tmp_path / "run", manager=manager)
    trainer = trainer_of(manager, "Counting")
    for _ in range(10):
        trainer.step()
    seen = api.load_student(result.files["student"], manager=manager).student.first.seen
    assert torch.equal(seen, trainer.state.roles["student"].network.first.seen)
