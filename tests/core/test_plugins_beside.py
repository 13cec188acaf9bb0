"""A plugin file beside a configuration is never loaded unasked; an unknown name says that it is there."""

from __future__ import annotations

import pytest

from freeflow_core.config import load_run_config
from freeflow_core.config.load_compare import load_compare_config
from freeflow_core.errors import UnknownComponent
from freeflow_core.plugin import Manager, Registry

PLUGIN = """
from pathlib import Path
Path(__file__).with_suffix(".ran").touch()
from freeflow_core.plugin import Component, hookimpl
@hookimpl
def freeflow_teachers():
    return [Component("blob", "freeflow_toy.gaussian_mixture:GaussianMixtureTeacher",
                      "freeflow_toy.config:GaussianMixtureConfig", "x")]
"""
CONFIG = "teacher: blob\nstudent: mlp\nobjective: freeflow\ncodec: states\n"


@pytest.fixture
def config(tmp_path):
    (tmp_path / "a_script.py").write_text("print('blob')")
    (tmp_path / "other_plugin.py").write_text(PLUGIN.replace("blob", "drop"))
    (tmp_path / "my_plugin.py").write_text(PLUGIN)
    file = tmp_path / "blob.yaml"
    file.write_text(CONFIG)
    return file


def test_the_file_that_offers_the_name_is_suggested_and_not_run(config, registry):
    with pytest.raises(UnknownComponent) as error:
        load_run_config(registry, "distill", file=config)
    assert "Unknown teacher 'blob'" in str(error.value)
    assert f"add --plugin {config.parent / 'my_plugin.py'}" in str(error.value)
    assert "other_plugin" not in str(error.value)
    assert not list(config.parent.glob("*.ran"))


def test_it_is_found_once_it_is_loaded(config):
    loaded = Registry(Manager.load([config.parent / "my_plugin.py"]))
    assert load_run_config(loaded, "distill", file=config).teacher.name == "blob"
    assert [path.name for path in config.parent.glob("*.ran")] == ["my_plugin.ran"]


def test_without_such_a_file_the_message_is_as_before(config, registry):
    (config.parent / "my_plugin.py").unlink()
    with pytest.raises(UnknownComponent) as error:
        load_run_config(registry, "distill", file=config)
    assert str(error.value).endswith("shows all of them.")


def test_comparisons_suggest_it_too(config, registry):
    config.write_text(CONFIG.replace("objective: freeflow\n", "") + "compare: {objectives: [freeflow, shortcut]}\n")
    with pytest.raises(
        UnknownComponent, match=r"In the runs of freeflow: Unknown teacher 'blob'.*--plugin .*my_plugin"
    ):
        load_compare_config(registry, file=config)
