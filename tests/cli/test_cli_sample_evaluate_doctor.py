from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import FakeApi
from freeflow_cli.commands.sample import parse_labels
from typer.testing import Result

from freeflow_core.errors import ConfigError
from freeflow_core.types import Check

Freeflow = Callable[..., Result]


def test_cli_sample_passes_its_options(freeflow: Freeflow, api: FakeApi, tmp_path: Path) -> None:
    result = freeflow(
        "sample", "--run", "runs/a", "--teacher", "wise", "--sampler", "heun", "--num", "8", "--steps", "4",
        "--guidance-weight", "2", "--labels", "0,5-7", "--seed", "3", "--format", "npz", "--device", "cpu",
        "--output", str(tmp_path), "--set", "teacher.power=0.5",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    arguments = api.calls[0][1]
    assert arguments["student"] == Path("runs/a")
    assert (arguments["teacher"], arguments["sampler"], arguments["steps"]) == ("wise", "heun", 4)
    assert (arguments["num"], arguments["guidance_weight"], arguments["seed"]) == (8, 2.0, 3)
    assert arguments["labels"] == [0, 5, 6, 7]
    assert (arguments["image_format"], arguments["device"]) == ("npz", "cpu")
    assert arguments["settings"] == ("teacher.power=0.5",)
    assert "8 samples, 2 network evaluations and 12.5 ms each." in result.stdout
    assert str(tmp_path / "grid.png") in result.stdout


def test_cli_sample_takes_a_student_file_by_its_own_name(freeflow: Freeflow, api: FakeApi) -> None:
    assert freeflow("sample", "--student", "s.safetensors").exit_code == 0
    assert api.calls[0][1]["student"] == Path("s.safetensors")
    assert api.calls[0][1]["labels"] == "balanced"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "Nothing to sample from"),
        (("--teacher", "wize"), "Did you mean 'wise'?"),
        (("--teacher", "wise", "--sampler", "huen"), "Did you mean 'heun'?"),
        (("--teacher", "wise", "--labels", "3-1"), "--labels '3-1'"),
        (("--teacher", "wise", "--jump-to", "1"), "--jump-to 1 must lie between 0"),
        (("--teacher", "wise", "--num", "0"), "--num"),
        (("--teacher", "wise", "--format", "gif"), "gif"),
    ],
)
def test_cli_sample_refuses_bad_requests_before_torch(
    freeflow: Freeflow, api: FakeApi, arguments: tuple[str, ...], expected: str
) -> None:
    result = freeflow("sample", *arguments)
    assert result.exit_code == 2
    assert expected in result.stderr
    assert api.calls == []


@pytest.mark.parametrize(("text", "labels"), [("3", [3]), ("0, 2", [0, 2]), ("1-3,9", [1, 2, 3, 9]), ("4-4", [4])])
def test_cli_labels(text: str, labels: list[int]) -> None:
    assert parse_labels(text) == labels


@pytest.mark.parametrize("text", ["", "a", "-1", "1-", "1,,2", "1.5"])
def test_cli_labels_refuse_anything_else(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a list of classes"):
        parse_labels(text)


def test_cli_evaluate_uses_the_configuration_of_the_run(freeflow: Freeflow, api: FakeApi, tmp_path: Path) -> None:
    shown = freeflow("config", "show", "--set", "evaluation.reference_steps=33")
    (tmp_path / "config.yaml").write_text(shown.stdout, "utf-8")
    (tmp_path / "student.safetensors").touch()
    for path in (tmp_path, tmp_path / "student.safetensors"):
        result = freeflow("evaluate", "--run", str(path), "--set", "evaluation.num_samples=50")
        assert result.exit_code == 0, result.output
        assert "teacher, 33 steps" in result.stdout
    for _, arguments in api.calls:
        assert arguments["config"].evaluation.reference_steps == 33
        assert arguments["config"].evaluation.num_samples == 50
    assert api.calls[1][1]["student"] == tmp_path / "student.safetensors"


def test_cli_evaluate_a_teacher_alone(freeflow: Freeflow, api: FakeApi) -> None:
    assert freeflow("evaluate", "--teacher", "stern", "--preset", "digits").exit_code == 0
    arguments = api.calls[0][1]
    assert (arguments["student"], arguments["config"].teacher.name) == (None, "stern")


def test_cli_evaluate_says_what_is_missing(freeflow: Freeflow, api: FakeApi, tmp_path: Path) -> None:
    assert "Nothing to evaluate" in freeflow("evaluate").stderr
    assert "There is no" in freeflow("evaluate", "--run", str(tmp_path / "absent")).stderr
    (tmp_path / "s.safetensors").touch()
    lone = freeflow("evaluate", "--student", str(tmp_path / "s.safetensors"))
    assert lone.exit_code == 2
    assert "Name it with --preset NAME or --config FILE" in lone.stderr
    assert api.calls == []


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warning", 0), ("error", 1)])
def test_cli_doctor_fails_only_on_errors(freeflow: Freeflow, api: FakeApi, status: str, code: int) -> None:
    api.checks = [
        Check(name="python", status="ok", detail="3.11"),
        Check(name="disk", status=status, detail="[full]"),
    ]
    result = freeflow("doctor")
    assert result.exit_code == code
    assert any(line.split() == [status, "disk", "[full]"] for line in result.stdout.splitlines())


def test_cli_doctor_prints_json(freeflow: Freeflow, api: FakeApi) -> None:
    api.checks = [Check(name="disk", status="error", detail="[full]")]
    result = freeflow("doctor", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == [{"name": "disk", "status": "error", "detail": "[full]"}]
