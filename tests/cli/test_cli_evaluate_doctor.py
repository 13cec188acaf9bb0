import json

import pytest

from freeflow_core.types import Check


def test_cli_evaluate_uses_the_configuration_of_the_run(freeflow, api, tmp_path):
    shown = freeflow("config", "show", "--set", "evaluation.reference_steps=33")
    (tmp_path / "config.yaml").write_text(shown.stdout, "utf-8")
    (tmp_path / "student.safetensors").touch()
    for path in (tmp_path, tmp_path / "student.safetensors"):
        result = freeflow("evaluate", "--run", str(path), "--set", "evaluation.num_samples=50")
        assert result.exit_code == 0, result.output
        assert "33 steps" in result.stdout
    for _, arguments in api.calls:
        assert arguments["config"].evaluation.reference_steps == 33
        assert arguments["config"].evaluation.num_samples == 50
    assert api.calls[1][1]["student"] == tmp_path / "student.safetensors"


def test_cli_evaluate_a_teacher_alone(freeflow, api):
    assert freeflow("evaluate", "--teacher", "stern", "--preset", "digits").exit_code == 0
    arguments = api.calls[0][1]
    assert (arguments["student"], arguments["config"].teacher.name) == (None, "stern")


def test_cli_evaluate_says_what_is_missing(freeflow, api, tmp_path):
    assert "Nothing to evaluate" in freeflow("evaluate").stderr
    assert "There is no" in freeflow("evaluate", "--run", str(tmp_path / "absent")).stderr
    (tmp_path / "s.safetensors").touch()
    lone = freeflow("evaluate", "--student", str(tmp_path / "s.safetensors"))
    assert lone.exit_code == 2
    assert "--preset NAME or --config FILE" in lone.stderr
    assert api.calls == []


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warning", 0), ("error", 1)])
def test_cli_doctor_fails_only_on_errors(freeflow, api, status, code):
    api.checks = [Check(name="python", status="ok", detail="3.11"), Check(name="disk", status=status, detail="[full]")]
    result = freeflow("doctor")
    assert result.exit_code == code
    assert any(line.split() == [status, "disk", "[full]"] for line in result.stdout.splitlines())


def test_cli_doctor_prints_json(freeflow, api):
    api.checks = [Check(name="disk", status="error", detail="[full]")]
    result = freeflow("doctor", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == [{"name": "disk", "status": "error", "detail": "[full]"}]
