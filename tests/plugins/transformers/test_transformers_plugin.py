from __future__ import annotations

import subprocess
import sys

import pytest
from freeflow_transformers import plugin

from freeflow_core.config import ComponentConfig
from freeflow_core.interfaces import Student, Teacher
from freeflow_core.plugin import Manager, Registry


@pytest.fixture
def registry() -> Registry:
    manager = Manager()
    manager.register(plugin, "transformers")
    return Registry(manager)


def test_everything_offered_can_be_loaded(registry: Registry) -> None:
    assert set(registry.components("teacher")) == {"digits", "sit"}
    assert set(registry.components("student")) == {"transformer", "velocity-transformer"}
    for kind, interface in (("teacher", Teacher), ("student", Student)):
        for component in registry.components(kind).values():
            assert issubclass(component.load_target(), interface)
            config = component.load_config_class()
            assert issubclass(config, ComponentConfig)
            assert all(field.description for field in config.model_fields.values())


def test_presets_for_both_commands(registry: Registry) -> None:
    assert set(registry.presets("distill")) == {"digits", "digits-guided"}
    assert set(registry.presets("pretrain")) == {"digits"}


def test_listing_needs_no_torch() -> None:
    code = "import sys, freeflow_transformers.plugin, freeflow_transformers.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
