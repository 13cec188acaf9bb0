import json

import pytest
import run_helpers
from freeflow_cli.catalogue import model_options
from freeflow_cli.main import build_app
from plugin_helpers import plugin
from pydantic import Field
from typer.testing import CliRunner

from freeflow_core.config import ComponentConfig
from freeflow_core.plugin import Component


def test_cli_list_shows_components_presets_and_plugins(freeflow):
    result = freeflow("plugins", "list")
    assert result.exit_code == 0
    for word in ("wise", "stern", "eager", "The heun of the tests.", "[distill] Small.", "[pretrain] Its teacher."):
        assert word in result.stdout
    assert "freeflow-example" in result.stdout
    assert "teachers, students, objectives" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_cli_list_by_kind(freeflow):
    result = freeflow("plugins", "list", "--kind", "teacher")
    assert "wise" in result.stdout
    assert "eager" not in result.stdout
    assert "freeflow-example" not in result.stdout
    assert freeflow("plugins", "list", "--kind", "verifier").stdout == "None.\n"


def test_cli_list_as_json(freeflow):
    values = json.loads(freeflow("plugins", "list", "--json").stdout)
    origin = {"plugin": "example", "distribution": "freeflow-example", "version": "1.2"}
    shown = {"kind": "teacher", "name": "wise", "summary": "The wise of the tests."} | origin
    assert shown in values["components"]
    assert values["plugins"][0]["name"] == "example"
    assert "freeflow_presets" in values["plugins"][0]["hooks"]


def test_cli_unknown_kind_is_a_usage_error(freeflow):
    result = freeflow("plugins", "list", "--kind", "teachr")
    assert result.exit_code == 2
    assert "Did you mean 'teacher'?" in result.stderr


def test_cli_show_prints_the_options_of_a_component(freeflow):
    result = freeflow("plugins", "show", "wise")
    assert result.exit_code == 0
    for word in ("teacher wise: The wise of the tests.", "Somebody 1999", "freeflow-example 1.2", "inner.depth"):
        assert word in result.stdout
    line = next(line for line in result.stdout.splitlines() if "power" in line)
    assert line.split()[:6] == ["power", "float,", "default", "0.5,", ">=", "0,"]
    assert "[in brackets]" in result.stdout


def test_cli_show_prints_a_preset_as_yaml(freeflow):
    result = freeflow("plugins", "show", "digits", "--kind", "preset")
    assert "teacher: {name: wise, power: 0.25}" in result.stdout
    assert "score 1.5, measured on a test" in result.stdout


def test_cli_show_as_json(freeflow):
    values = json.loads(freeflow("plugins", "show", "agree", "--json").stdout)
    (component,) = values["components"]
    by_name = {option["name"]: option for option in component["options"]}
    assert by_name["mode"]["type"] == "near | far"
    facts = {"name": "limit", "type": "int | null", "default": "null", "range": "> 0"}
    assert by_name["limit"] == facts | {"description": "At most this many."}
    assert by_name["names"]["type"] == "list of text"
    assert by_name["inner.depth"]["range"] == ">= 1, <= 9"


def test_cli_a_plugin_adds_commands(freeflow):
    assert freeflow("greet").stdout == "hello from a plugin\n"
    assert "greet" in freeflow("--help").stdout


def breaks():
    raise RuntimeError("nothing\nworks")


@pytest.mark.parametrize("hooks", [{"teachers": lambda: breaks()}, {"commands": lambda app: breaks()}])
def test_cli_a_failing_hook_costs_one_warning_line(manager, hooks):
    manager.register(plugin(**hooks), "broken", "freeflow-broken", "0.1")
    result = CliRunner().invoke(build_app(manager), ["config", "show"])
    assert result.exit_code == 0
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("Warning: plugin 'broken'")
    assert "RuntimeError: nothing works" in line


def test_cli_a_component_offered_twice_costs_one_warning_line(manager):
    manager.register(plugin(samplers=[Component("heun", "a:B", "a:C", "")]), "again", "freeflow-again", "0.1")
    result = CliRunner().invoke(build_app(manager), ["plugins", "list"])
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("Warning: ")
    assert "freeflow-again" in line
    assert "freeflow-example" in line


def test_cli_a_disabled_plugin_is_listed_without_a_warning(monkeypatch):
    monkeypatch.setenv("FREEFLOW_DISABLED_PLUGINS", "mlflow")
    result = run_helpers.freeflow("plugins", "list")
    assert result.stderr == ""
    (row,) = (line for line in result.stdout.splitlines() if "disabled by" in line)
    assert row.split()[0] == "mlflow"


def test_cli_option_without_default_is_required():
    class Needs(ComponentConfig):
        path: str = Field(pattern="^/", description="Where.")

    (option,) = model_options(Needs)
    assert (option.default, option.range) == ("required", "matches ^/")
