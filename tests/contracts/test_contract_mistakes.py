"""What a plugin author gets wrong first: each meets one message at run time, and fails a named contract check."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from freeflow_cli.main import build_app
from typer.testing import CliRunner, Result

from freeflow_core.plugin import Manager, Registry
from freeflow_core.testing.contracts import CONTRACTS, run_contract

PLUGIN = Path(__file__).with_name("mistakes.py")
CONFIG = """
name: mistake
teacher: {{name: plane-teacher, mistake: {teacher}}}
student: {{name: mlp, width: 8, depth: 1}}
objective: {{name: plane-objective, mistake: {objective}}}
codec: states
training: {{images: 64, batch_size: 8}}
evaluation: {{enabled: false}}
runtime: {{device: cpu}}
"""


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry(Manager.load([PLUGIN]))


@pytest.fixture
def distill(tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """``freeflow distill`` with the mistakes given."""
    monkeypatch.setenv("COLUMNS", "4000")

    def run(teacher: str = "none", objective: str = "none") -> Result:
        file = tmp_path / "run.yaml"
        file.write_text(CONFIG.format(teacher=teacher, objective=objective), "utf-8")
        arguments = ["distill", "--config", str(file), "--output", str(tmp_path / "out")]
        return CliRunner().invoke(build_app(Manager.load([PLUGIN])), arguments)

    return run


def said(result: Result) -> str:
    return " ".join(result.output.split())


def test_without_a_mistake_it_trains(distill: Callable[..., Result]) -> None:
    result = distill()
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("shape", r"gave \(4, 1\) float32 on cpu from velocity\(\); expected \(4, 2\) float32 on cpu"),
        ("dtype", r"gave \(4, 2\) float64 on cpu from velocity\(\); expected \(4, 2\) float32 on cpu"),
        ("device", r"gave \(4, 2\) float32 on meta from velocity\(\); expected \(4, 2\) float32 on cpu"),
        ("condition", r"num_classes=3, but .* gave no condition \(None\); expected labels, int64 \(8,\)"),
        ("labels", r"gave labels from 7 to 9; the teacher 'plane-teacher' has num_classes=3, so expected 0 to 2"),
        ("trainable", r"gave velocities with a gradient; expected none"),
        ("sign", r"expected a velocity dx/dt with t = 0 data and t = 1 noise.*sign runs the wrong way"),
        ("time", r"expected a velocity dx/dt with t = 0 data and t = 1 noise.*time runs the wrong way"),
        ("time-and-sign", r"its time runs the wrong way, and with it the sign"),
        ("crash", r"failed in velocity\(\) with RuntimeError: .* It was given states \(4, 2\) float32 on cpu, times"),
    ],
)
def test_a_teachers_mistake_is_told_before_the_first_step(
    distill: Callable[..., Result], mistake: str, message: str
) -> None:
    result = distill(teacher=mistake)
    assert result.exit_code == 1
    assert "'plane-teacher'" in said(result)
    assert re.search(message, said(result)), said(result)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("batch-loss", r"a 'student' loss of shape \(\); expected one value per sample, \(8,\), not a mean"),
        ("batch-loss-of-one", r"a 'student' loss of shape \(1,\); expected one value per sample, \(8,\), not a mean"),
        ("detached", r"a 'student' loss without gradient; expected one that reaches the weights"),
        ("number", r"returned a float for 'student'; expected a freeflow_core.types.Loss whose per_sample is a tensor"),
        ("unknown-role", r"a loss for 'critic', which is not a trainable role\. Trainable: student"),
        ("frozen-role", r"a loss for 'critic', which is not a trainable role, for it is frozen"),
        ("missing-role", r"asked for the role 'critic', which roles\(\) did not return\. There are: student"),
        ("no-loss", r"returned no loss; expected one for 'student' or a role"),
        ("trains-teacher", r"The role 'critic' .* shares weights with the teacher, which is never trained; expected"),
    ],
)
def test_an_objectives_mistake_is_told_at_the_first_step(
    distill: Callable[..., Result], mistake: str, message: str
) -> None:
    result = distill(objective=mistake)
    assert result.exit_code == 1
    assert "'plane-objective'" in said(result)
    assert re.search(message, said(result)), said(result)


def test_a_role_whose_loss_never_comes_is_told_at_the_end(
    distill: Callable[..., Result], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "freeflow"):
        result = distill(objective="idle-role")
    assert result.exit_code == 0, result.output
    told = [record.getMessage() for record in caplog.records if "no loss" in record.getMessage()]
    assert len(told) == 1
    assert "objective 'plane-objective' has returned no loss for its trainable role 'critic' in 8 steps" in told[0]


@pytest.mark.parametrize(
    ("kind", "mistake", "check", "message"),
    [
        ("teacher", "shape", "velocity has the shape of the states", r"expected a velocity of shape \(6, 2\); got \(6, 1\)"),
        ("teacher", "dtype", "float32 in float32 out", r"expected float32 velocities .* got \(6, 2\) float64"),
        ("teacher", "condition", "conditions fit", r"expected labels from sample_condition of a teacher with 3 classes"),
        ("teacher", "labels", "labels are in range", r"labels from 0 to 2 from sample_condition; got torch.int64 from 7"),
        ("teacher", "trainable", "arrives frozen", r"expected a velocity without gradient from a frozen teacher"),
        ("teacher", "sign", "time and sign run from data to noise", r"sign runs the wrong way.*Return minus"),
        ("teacher", "time", "time and sign run from data to noise", r"time runs the wrong way.*Ask it at 1 - t"),
        ("teacher", "time-and-sign", "time and sign run from data to noise", r"and with it the sign"),
        ("objective", "batch-loss", "losses are one number a sample", r"loss of shape \(\); expected one value per"),
        ("objective", "unknown-role", "losses are one number a sample", r"'critic', which is not a trainable role"),
        ("objective", "missing-role", "losses are one number a sample", r"role 'critic', which roles\(\) did not"),
        ("objective", "idle-role", "every trainable role gets its loss", r"expected a loss .* got none for critic"),
        ("objective", "trains-teacher", "roles are networks of their own", r"shares (weights|them) with"),
    ],
)  # fmt: skip
def test_the_contract_names_it(registry: Registry, kind: str, mistake: str, check: str, message: str) -> None:
    found = list(
        run_contract(
            CONTRACTS[kind], component=f"plane-{kind}", options={"mistake": mistake}, registry=registry,
            only={f"test_{check.replace(' ', '_')}"},
        )
    )  # fmt: skip
    (result,) = [each for each in found if each.check == check]
    assert result.status == "failed", result
    assert f"'plane-{kind}'" in result.message
    assert re.search(message, result.message), result.message


def test_the_command_reports_and_fails(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    app = build_app(Manager.load([PLUGIN]))

    def check(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["plugins", "check", *arguments])

    good = check("plane-teacher")
    assert good.exit_code == 0, good.output
    assert "ok" in good.output
    assert "0 failed" in good.output
    bad = check("plane-teacher", "--set", "mistake=time")
    assert bad.exit_code == 1
    assert "time runs the wrong way" in said(bad)
    listed: dict[str, Any] = json.loads(check("plane-teacher", "--json").output)
    (component,) = listed["components"]
    assert {each["status"] for each in component["checks"]} <= {"ok", "skipped"}
    whole = check("freeflow_file_mistakes", "--set", "mistake=time")
    assert whole.exit_code == 2
    assert "--set is ambiguous" in said(whole)
    unknown = check("plane-teecher")
    assert unknown.exit_code == 2
    assert "Did you mean 'plane-teacher'?" in said(unknown)
