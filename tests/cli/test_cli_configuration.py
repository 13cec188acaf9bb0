import json

import pytest
import yaml


def shown(result):
    assert result.exit_code == 0, result.output
    values = yaml.safe_load(result.stdout)
    return values


def test_cli_config_show_defaults_to_the_mnist_preset(freeflow):
    values = shown(freeflow("config", "show"))
    assert values["name"] == "mnist"
    assert values["teacher"] == {
        "name": "wise", "power": 0.25, "mode": "near", "limit": None, "names": [], "inner": {"depth": 2}
    }  # fmt: skip
    assert values["seed"] == 0  # every default is written out


def test_cli_config_show_output_is_a_config_file(freeflow, config_file):
    first = freeflow("config", "show", "--set", "objective.limit=7", "--set", "training.images=100", "--seed", "5")
    again = freeflow("config", "show", "--config", str(config_file(first.stdout)))
    assert shown(first)["seed"] == 5
    assert again.stdout == first.stdout


def test_cli_another_teacher_keeps_the_rest_of_the_preset(freeflow):
    values = shown(freeflow("config", "show", "--teacher", "stern"))
    assert values["teacher"] == {"name": "stern"}
    assert values["objective"]["mode"] == "far"
    assert values["training"]["images"] == 6400


def test_cli_a_file_stands_alone(freeflow, config_file):
    path = str(config_file("student: lazy\nobjective: agree\n"))
    values = shown(freeflow("config", "show", "--config", path))
    assert (values["name"], values["teacher"]) == ("run", None)


def test_cli_config_show_for_pretrain(freeflow):
    values = shown(freeflow("config", "show", "--command", "pretrain", "--student", "lazy"))
    assert (values["name"], values["source"], values["student"]) == (
        "digits-teacher", {"name": "pictures"}, {"name": "lazy"}
    )  # fmt: skip


def test_cli_config_show_as_json(freeflow):
    assert json.loads(freeflow("config", "show", "--json").stdout) == shown(freeflow("config", "show"))


@pytest.mark.parametrize("arguments", [("--seed", "-1"), ("--command", "sample")])
def test_cli_config_show_refuses_bad_values(freeflow, arguments):
    assert freeflow("config", "show", *arguments).exit_code == 2
