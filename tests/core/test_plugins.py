"""Built-ins take the third-party route, and what a plugin does wrong costs one clear line: duplicates, wrong objects, another API."""

import importlib
import sys

import pytest
from plugin_helpers import plugin

from freeflow_core.errors import PluginError, UnknownComponent
from freeflow_core.plugin import API_VERSION, KINDS, Component, Manager, Preset, Registry, WeightFile
from freeflow_core.plugin import manager as plugin_version
from freeflow_core.plugin.manager import api_version, needed_in_source, refusal

ONE = Component("mine", "package.module:Class", "package.config:Config", "An objective.")
OTHER = Component("other", "package.module:Class", "package.config:Config", "An objective.")


def managed(**plugins):
    """A manager of plugins by name, each with its distribution and what its objectives hook returns."""
    manager = Manager()
    for name, (distribution, returned) in plugins.items():
        manager.register(plugin(objectives=returned), name, distribution, "1.0")
    return manager


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
    manager.register(plugin(objectives=[ONE]), "first")
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
    manager = Manager()
    with pytest.raises(PluginError, match="freeflow_objektives"):
        manager.register(plugin(objektives=[]), "misspelt")
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


def test_between_two_others_neither_has_the_name():
    registry = Registry(managed(first=("dist-one", [ONE, OTHER]), second=("dist-two", [ONE])))
    assert list(registry.components("objective")) == ["other"]
    (line,) = registry.warnings
    assert "'first' (dist-one 1.0) and 'second' (dist-two 1.0)" in line
    assert "neither is used" in line
    with pytest.raises(PluginError) as error:
        registry.component("objective", "mine")
    assert str(error.value) == line
    with pytest.raises(PluginError, match="dist-one"):
        registry.origin("objective", "mine")
    with pytest.raises(UnknownComponent, match="Known: other"):
        registry.component("objective", "mein-eigenes")


@pytest.mark.parametrize("order", [("a-first", "toy"), ("toy", "z-last")])
def test_built_in_plugins_keep_their_names(order):
    distributions = {name: "freeflow-distill" if name == "toy" else "dist-two" for name in order}
    registry = Registry(managed(**{name: (distributions[name], [ONE]) for name in order}))
    assert registry.origin("objective", "mine").name == "toy"
    (line,) = registry.warnings
    assert "(dist-two 1.0): its objective 'mine' is left out" in line
    assert "'toy' (freeflow-distill 1.0)" in line


def test_one_plugin_that_offers_a_name_twice_keeps_the_first():
    again = Component("mine", "another.module:Class", "package.config:Config", "")
    registry = Registry(managed(first=("dist-one", [ONE, again])))
    assert registry.component("objective", "mine") == ONE
    (line,) = registry.warnings
    assert "offers two" in line


def test_presets_and_weights_are_settled_alike():
    manager, weights = Manager(), [WeightFile("w", "", "w.bin")]
    distill, pretrain = (Preset("p", "a:x.yaml", command, "") for command in ("distill", "pretrain"))
    manager.register(plugin(presets=[distill, pretrain], weights=weights), "one")
    manager.register(plugin(presets=[distill, ONE], weights=weights), "two")
    registry = Registry(manager)
    assert list(registry.presets("pretrain")) == ["p"]
    assert not registry.presets("distill")
    assert not registry.weights()
    preset, wrong, weights = registry.warnings
    assert "distill preset 'p'" in preset
    assert "expected a Preset" in wrong
    assert "weight file 'w'" in weights
    with pytest.raises(PluginError, match=r"'one'.*'two'"):
        registry.preset("distill", "p")
    with pytest.raises(PluginError, match=r"'one'.*'two'"):
        registry.weight("w")
    assert registry.preset_origin("pretrain", "p").name == "one"


def test_a_wrong_object_is_left_out_alone():
    registry = Registry(managed(wrong=("dist", ["a string", ONE])))
    assert list(registry.components("objective")) == ["mine"]
    (line,) = registry.warnings
    assert "plugin 'wrong' (dist 1.0) returned 'a string' among its objectives; expected a Component" in line


@pytest.mark.parametrize("returned", [None, ONE, "text", 3])
def test_a_hook_that_returns_no_list_costs_its_plugin_that_hook(returned):
    manager = managed(wrong=("dist", returned), good=("dist-two", [ONE]))
    assert list(Registry(manager).components("objective")) == ["mine"]
    (problem,) = manager.problems
    assert problem.name == "wrong"
    assert problem.loaded
    assert "expected a list" in problem.problem


def test_a_failing_hook_costs_its_own_components_in_every_registry():
    half = plugin(
        teachers=[ONE],
        samplers=lambda: [Component(3, "a:B", "a:C", "")],
        presets=lambda: [Preset("p", "nowhere:x.yaml", "distil", "")],
    )
    manager = Manager()
    manager.register(half, "half", "dist", "1")
    for registry in (Registry(manager), Registry(manager)):
        assert list(registry.components("teacher")) == ["mine"]
        assert not registry.components("sampler")
    (problem,) = manager.problems
    assert "freeflow_samplers: A Component was declared with name=3; expected text" in problem.problem
    assert "command is one of distill, pretrain, compare" in problem.problem


@pytest.mark.parametrize("name", ["", "two words", "-dash", "a/b"])
def test_names_that_cannot_be_typed_are_refused(name):
    with pytest.raises(PluginError, match="letters, digits"):
        Component(name, "a:B", "a:C", "")


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Adds a distribution with one module and one entry point, as pip would leave them."""

    def write(distribution, point, source):
        module = f"{distribution.replace('-', '_')}_plugin"
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[freeflow]\n{point} = {module}\n")
        importlib.invalidate_caches()

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("FREEFLOW_DISABLED_PLUGINS", raising=False)
    before = set(sys.modules)
    yield write
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def offering(name, head=""):
    return (
        f"{head}\nfrom freeflow_core.plugin import Component, hookimpl\n"
        f"@hookimpl\ndef freeflow_objectives():\n    return [Component({name!r}, 'a:B', 'a:C', '')]\n"
    )


def test_of_two_plugins_of_one_name_neither_is_loaded_until_one_is_disabled_by_its_distribution(install, monkeypatch):
    install("dist-one", "same", offering("from-one"))
    install("dist-two", "same", offering("from-two"))
    manager = Manager.load()
    known = Registry(manager).components("objective")
    assert not {"from-one", "from-two"} & set(known)
    assert "freeflow" in known
    problems = {p.distribution: p.problem for p in manager.problems}
    assert "dist-two has a plugin of this name too; none of them is used" in problems["dist-one"]
    assert "dist-one has" in problems["dist-two"]
    monkeypatch.setenv("FREEFLOW_DISABLED_PLUGINS", "dist-two")
    manager = Manager.load()
    assert not manager.problems
    assert not manager.warnings
    assert "from-one" in Registry(manager).components("objective")


def test_a_plugin_with_a_built_in_ones_name_is_left_out(install):
    install("dist-one", "toy", offering("from-one"))
    manager = Manager.load()
    assert "gaussian-mixture" in Registry(manager).components("teacher")
    assert "from-one" not in Registry(manager).components("objective")
    (problem,) = manager.problems
    assert problem.distribution == "dist-one"
    assert "freeflow-distill has a plugin of this name too; the built-in one is used" in problem.problem


def test_unknown_names_in_the_disabling_variable_cost_one_line(monkeypatch):
    monkeypatch.setenv("FREEFLOW_DISABLED_PLUGINS", "tooy, nobody, mlflow,")
    (line,) = Manager.load().warnings
    assert "'nobody', 'tooy': no such plugin" in line


@pytest.mark.parametrize(
    ("needed", "fits"), [("1", False), ("3", True), ("3.0", True), ("3.4", True), ("3.5", False), ("4", False)]
)
def test_versions_of_the_api(needed, fits, monkeypatch):
    monkeypatch.setattr(plugin_version, "API_VERSION", (3, 4))
    reason = refusal(needed)
    assert (reason is None) == fits
    assert fits or reason.endswith("update freeflow-distill" if needed > "3" else "update the plugin")


@pytest.mark.parametrize("nonsense", ["", "one", "1.2.3", "v1", "None"])
def test_a_version_that_is_none_is_refused(nonsense):
    assert "is not a version of the plugin API" in (refusal(nonsense) or "")


def test_the_declaration_is_found_in_a_source_that_cannot_be_imported():
    assert needed_in_source('import x\nfreeflow_api = "2.1"  # new\n') == "2.1"
    assert needed_in_source("freeflow_api: str = '3'\n") == "3"
    assert needed_in_source("# freeflow_api = '3'\n") == "1"


def test_an_outdated_plugin_is_refused_with_both_versions_named(install):
    newer = f"{API_VERSION[0]}.{API_VERSION[1] + 1}"
    install("dist-new", "new", offering("n", f"freeflow_api = {newer!r}"))
    install("dist-unimportable", "unimportable", "freeflow_api = '9'\nfrom freeflow_core.plugin import Nonexistent\n")
    install("dist-exits", "exits", "raise SystemExit(3)\n")
    install("dist-broken", "broken", "raise ValueError('out\\nof order')\n")
    manager = Manager.load()
    problems = {p.name: p.problem for p in manager.problems}
    assert set(problems) == {"new", "unimportable", "exits", "broken"}
    for name, needed in (("new", newer), ("unimportable", "9")):
        assert f"version {needed} of the plugin API, and this freeflow has version {api_version()}" in problems[name]
        assert "\n" not in problems[name]
    assert "Nonexistent" in problems["unimportable"]
    assert "ends the program" in problems["exits"]
    assert problems["broken"].startswith("ValueError: out of order (")
    assert problems["broken"].endswith("dist_broken_plugin.py, line 1)")
    assert "n" not in Registry(manager).components("objective")


def test_every_built_in_plugin_declares_what_it_needs(manager):
    assert {plugin.api for plugin in manager.plugins} == {str(API_VERSION[0])}


def test_built_in_plugins_offer_nothing_twice(registry):
    assert registry.warnings == ()


def test_an_outdated_file_is_an_error_and_two_files_need_two_names(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(offering("n", "freeflow_api = '9'"))
    with pytest.raises(PluginError, match=rf"needs version 9 .* has version {api_version()}"):
        Manager.load([file])
    file.write_text("freeflow_api = '9'\nfrom freeflow_core.plugin import Nonexistent\n")
    with pytest.raises(PluginError, match="needs version 9"):
        Manager.load([file])
    file.write_text(offering("n"))
    (tmp_path / "sub").mkdir()
    other = tmp_path / "sub" / "mine.py"
    other.write_text(offering("m"))
    with pytest.raises(PluginError, match=r"sub.mine\.py cannot be loaded beside .*mine\.py"):
        Manager.load([file, other])
    text = tmp_path / "plugin.txt"
    text.write_text(offering("n"))
    with pytest.raises(PluginError, match=r"must end in \.py"):
        Manager.load([text])
