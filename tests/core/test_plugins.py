"""The registry: built-ins take the third-party route, and a broken plugin costs one line."""

import pytest

from freeflow_core.errors import PluginError, UnknownComponent
from freeflow_core.plugin import KINDS, Component, Manager, Registry, hookimpl


class Offers:
    def __init__(self, *components):
        self._components = components

    @hookimpl
    def freeflow_objectives(self):
        return self._components


ONE = Component("mine", "package.module:Class", "package.config:Config", "An objective.")


def test_built_ins_come_through_entry_points(manager):
    assert not manager.problems
    assert {p.name for p in manager.plugins} >= {"toy", "transformers", "predictor-corrector", "samplers", "mlflow"}
    assert {p.distribution for p in manager.plugins} == {"freeflow-distill"}


def test_every_component_can_be_imported_and_is_described(registry):
    for kind in KINDS:
        for name, component in registry.components(kind).items():
            assert component.load_target().from_config
            fields = component.load_config_class().model_fields
            assert component.about()[0], f"{kind} {name} has no summary"
            for field, info in fields.items():
                assert info.description, f"option {field} of {kind} {name} has no description"


def test_every_preset_resolves(registry):
    from freeflow_core.config import load_run_config

    for command in ("distill", "pretrain"):
        for name, preset in registry.presets(command).items():
            config = load_run_config(registry, command, preset=name)
            assert config.name
            assert preset.summary


def test_unknown_names_and_broken_targets():
    manager = Manager()
    manager.register(Offers(ONE), "first")
    registry = Registry(manager)
    with pytest.raises(UnknownComponent, match="Did you mean 'mine'"):
        registry.component("objective", "mein")
    with pytest.raises(PluginError, match="cannot be imported"):
        registry.component("objective", "mine").load_target()
    with pytest.raises(PluginError, match=r"package\.module:Name"):
        Component("x", "nowhere", "nowhere", "").load_target()
    with pytest.raises(PluginError, match="has no 'Nothing'"):
        Component("x", "json:Nothing", "json:Nothing", "").load_target()


def test_misspelt_hooks_are_refused():
    class Misspelt:
        @hookimpl
        def freeflow_objektives(self):
            return []

    manager = Manager()
    with pytest.raises(PluginError, match="freeflow_objektives"):
        manager.register(Misspelt(), "misspelt")
    assert not manager.plugins


def test_one_file_plugins(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from freeflow_core.plugin import Component, hookimpl\n"
        "@hookimpl\n"
        "def freeflow_objectives():\n"
        "    return [Component('from-file', ':Objective', ':Config'), Component('lost', ':Objective', 'nowhere:C')]\n"
        "class Objective: ...\n"
        "class Config:\n"
        '    """One\n    line.\n\n    More.\n\n    Source: a paper\n    """\n'
    )
    registry = Registry(Manager.load([file]))
    assert registry.component("objective", "from-file").load_target().__name__ == "Objective"
    assert registry.component("objective", "from-file").about() == ("One line", "a paper")
    assert "nowhere" in registry.component("objective", "lost").about()[0]
    file.write_text("raise ValueError('broken')\n")
    with pytest.raises(PluginError, match="broken"):
        Manager.load([file])
    with pytest.raises(PluginError, match="does not exist"):
        Manager.load([tmp_path / "none.py"])
