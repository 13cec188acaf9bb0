"""What a plugin author gets wrong first: each meets one message at run time, and fails a named contract check."""

import json
import logging
from pathlib import Path

import pytest
from freeflow_cli.main import build_app
from typer.testing import CliRunner

from freeflow_core.plugin import Manager, Registry
from freeflow_core.testing import CONTRACTS, run_contract

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
def registry():
    return Registry(Manager.load([PLUGIN]))


@pytest.fixture
def distill(tmp_path, registry, monkeypatch):
    """``freeflow distill`` with the mistakes given."""
    monkeypatch.setenv("COLUMNS", "4000")

    def run(teacher="none", objective="none"):
        file = tmp_path / "run.yaml"
        file.write_text(CONFIG.format(teacher=teacher, objective=objective), "utf-8")
        arguments = ["distill", "--config", str(file), "--output", str(tmp_path / "out")]
        return CliRunner().invoke(build_app(Manager.load([PLUGIN])), arguments)

    return run


def said(result):
    return " ".join(result.output.split())


def test_without_a_mistake_it_trains(distill):
    result = distill()
    assert result.exit_code == 0, result.output


FIELD, LOSSES = "time and sign run from data to noise", "losses are one number a sample"
MISTAKES = {
    ("teacher", "shape"): ("(4, 1) float32", "velocity has the shape of the states"),
    ("teacher", "dtype"): ("(4, 2) float64", "float32 in float32 out"),
    ("teacher", "device"): ("on meta", None),
    ("teacher", "condition"): ("gave no condition", "conditions fit"),
    ("teacher", "labels"): ("labels from 7 to 9", "labels are in range"),
    ("teacher", "trainable"): ("with a gradient", "arrives frozen"),
    ("teacher", "crash"): ("failed in velocity() with RuntimeError", None),
    ("teacher", "sign"): ("sign runs the wrong way", FIELD),
    ("teacher", "time"): ("Ask it at 1 - t", FIELD),
    ("teacher", "time-and-sign"): ("and with it the sign", FIELD),
    ("teacher", "zero"): ("zero everywhere", FIELD),
    ("teacher", "large-states"): ("Ask it at x / 2", FIELD),
    ("teacher", "squared-time"): ("Ask it at sqrt(t)", FIELD),
    ("teacher", "thousand"): ("Ask it at 1000 t", FIELD),
    ("teacher", "scaled"): ("3 times the velocity", FIELD),
    ("teacher", "predicts-data"): (None, FIELD),
    ("teacher", "in-place"): (None, "inputs are left alone"),
    ("teacher", "state"): (None, "velocity is deterministic"),
    ("teacher", "random"): (None, "velocity is deterministic"),
    ("teacher", "rows"): (None, "rows do not depend on each other"),
    ("teacher", "one-time"): (None, "rows do not depend on each other"),
    ("teacher", "float64-only"): ("failed in velocity() with RuntimeError", "float32 in float32 out"),
    ("teacher", "blind-time"): (None, "forward mode agrees with differences"),
    ("objective", "random"): (None, "losses depend on their draws alone"),
    ("objective", "remembers"): (None, "losses depend on their draws alone"),
    ("objective", "wrong-sign"): (None, "the exact map is a stationary point"),
    ("objective", "batch-loss"): ("loss of shape ()", LOSSES),
    ("objective", "batch-loss-of-one"): ("loss of shape (1,)", None),
    ("objective", "detached"): ("without gradient", None),
    ("objective", "number"): ("a float for 'student'", None),
    ("objective", "unknown-role"): ("not a trainable role", LOSSES),
    ("objective", "frozen-role"): ("it is frozen", None),
    ("objective", "missing-role"): ("asked for the role 'critic'", LOSSES),
    ("objective", "no-loss"): ("no loss", None),
    ("objective", "trains-teacher"): ("shares weights with the teacher", "roles are networks of their own"),
    ("objective", "idle-role"): (None, "every trainable role gets its loss"),
}
"""What a run says of it, at the latest in its first step; and the check that fails."""


@pytest.mark.parametrize(("kind", "mistake"), [key for key, (told, _) in MISTAKES.items() if told])
def test_a_mistake_is_told_before_the_second_step(distill, kind, mistake):
    result = distill(**{kind: mistake})
    assert result.exit_code == 1
    assert f"'plane-{kind}'" in said(result)
    assert MISTAKES[kind, mistake][0] in said(result)


def test_a_role_whose_loss_never_comes_is_told_at_the_end(distill, caplog):
    with caplog.at_level(logging.WARNING, "freeflow"):
        result = distill(objective="idle-role")
    assert result.exit_code == 0, result.output
    told = [record.getMessage() for record in caplog.records if "no loss" in record.getMessage()]
    assert len(told) == 1
    assert "objective 'plane-objective' has returned no loss for its trainable role 'critic' in 8 steps" in told[0]


@pytest.mark.parametrize(("kind", "mistake"), [key for key, (_, check) in MISTAKES.items() if check])
def test_the_contract_names_it(registry, kind, mistake):
    check = MISTAKES[kind, mistake][1]
    only = {f"test_{check.replace(' ', '_')}"}
    options = {"mistake": mistake}
    (result,) = run_contract(CONTRACTS[kind], component=f"plane-{kind}", options=options, registry=registry, only=only)
    assert (result.check, result.status) == (check, "failed")
    assert f"'plane-{kind}'" in result.message


def test_the_command_reports_and_fails(registry, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    app = build_app(Manager.load([PLUGIN]))

    def check(*arguments):
        return CliRunner().invoke(app, ["plugins", "check", *arguments])

    good = check("plane-teacher")
    assert good.exit_code == 0, good.output
    assert "ok" in good.output
    assert "0 failed" in good.output
    bad = check("plane-teacher", "--set", "mistake=time")
    assert bad.exit_code == 1
    assert "time runs the wrong way" in said(bad)
    listed = json.loads(check("plane-teacher", "--json").output)
    (component,) = listed["components"]
    assert {each["status"] for each in component["checks"]} <= {"ok", "skipped"}
    whole = check("freeflow_file_mistakes", "--set", "mistake=time")
    assert whole.exit_code == 2
    assert "--set is ambiguous" in said(whole)
    unknown = check("plane-teecher")
    assert unknown.exit_code == 2
    assert "Did you mean 'plane-teacher'?" in said(unknown)
