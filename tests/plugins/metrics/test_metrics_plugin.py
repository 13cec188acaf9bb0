"""The plugin's components as the registry sees them."""

import pytest

from freeflow_core.interfaces import Evaluator
from freeflow_core.plugin.manager import Manager
from freeflow_core.plugin.registry import Registry

NAMES = ("frechet", "kernel", "energy-distance", "class-accuracy", "spread", "fidelity")


@pytest.mark.parametrize("name", NAMES)
def test_every_evaluator_is_found_and_builds_from_its_defaults(name, build_context):
    component = Registry(Manager.load()).component("evaluator", name)
    config = component.load_config_class()
    assert all(field.description for field in config.model_fields.values())
    evaluator = component.load_target().from_config(config(), build_context)
    assert isinstance(evaluator, Evaluator)
    evaluator.reset("data")
    assert evaluator.compute() == {}
