import pytest
from freeflow_transformers import plugin

from freeflow_core.config import ComponentConfig
from freeflow_core.interfaces import Student, Teacher
from freeflow_core.plugin import Manager, Registry


@pytest.fixture
def registry():
    manager = Manager()
    manager.register(plugin, "transformers")
    return Registry(manager)


def test_everything_offered_can_be_loaded(registry):
    assert set(registry.components("teacher")) == {"digits", "mnist", "sit", "sit-repa", "dit"}
    assert set(registry.components("student")) == {
        "transformer",
        "velocity-transformer",
        "policy-transformer",
        "freeflow",
        "freeflow-xl-2-256",
        "freeflow-sit-xl-2-256",
        "freeflow-xl-2-512",
    }
    for kind, interface in (("teacher", Teacher), ("student", Student)):
        for component in registry.components(kind).values():
            assert issubclass(component.load_target(), interface)
            config = component.load_config_class()
            assert issubclass(config, ComponentConfig)
            assert all(field.description for field in config.model_fields.values())


def test_every_published_student_has_its_weights(registry):
    published = {name for name in registry.components("student") if name.startswith("freeflow-")}
    assert published <= set(registry.weights())
    for name in published:
        assert registry.component("student", name).load_config_class().published == name
