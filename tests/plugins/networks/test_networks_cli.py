"""`freeflow teacher check` and `--trust`, as they are typed."""

import json
from pathlib import Path

import pytest
from run_helpers import freeflow

SUPPORT = Path(__file__).parent


@pytest.fixture
def network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(
        f"import sys; sys.path.insert(0, {str(SUPPORT)!r})\n"
        "from networks_support import ExactNetwork\n"
        "net = ExactNetwork(direction='data-at-1', sign='data-minus-noise')\n",
        "utf-8",
    )
    (tmp_path / "net.yaml").write_text(
        "teacher:\n  name: callable\n  network: net.py:net\n  sample_shape: [2]\n  arguments: [x, t]\n"
        "training: {images: 10}\n",
        "utf-8",
    )
    return tmp_path


def test_the_right_convention_passes(network):
    untrusted = freeflow("teacher", "check", "--config", "net.yaml", exit_code=2)
    assert "freeflow --trust" in untrusted.stderr
    right = ["--config", "net.yaml", "--set", "teacher.time_direction=data-at-1"]
    result = freeflow("teacher", "check", *right, "--num", "512", "--json", "--trust")
    found = json.loads(result.stdout)
    assert found["right"]
    assert found["proposals"] == []
    assert {check["status"] for check in found["checks"]} == {"ok"}
    assert (network / found["file"]).is_file()


def test_a_wrong_convention_fails_and_prints_the_settings_that_mend_it(network):
    result = freeflow(
        "teacher", "check", "--config", "net.yaml", "--num", "512", "--steps", "16", "--trust", exit_code=1
    )
    assert "  --set teacher.time_direction=data-at-1   (misses" in result.stdout
    assert result.stdout.count("\nerror") >= 1
    assert "teacher-check/samples.png" in result.stdout


def test_a_check_of_a_teacher_of_ours_draws_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = freeflow("teacher", "check", "--teacher", "digits", "--steps", "8", "--output", "there", "--json")
    assert json.loads(result.stdout)["file"] == "there/samples.png"
    assert (tmp_path / "there" / "samples.png").stat().st_size > 500


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["teacher", "check"], "Nothing to check"),
        (["teacher", "check", "--teacher", "digit"], "Did you mean 'digits'?"),
        (["teacher", "check", "--teacher", "digits", "--set", "training.images=3"], "there is no 'training'"),
    ],
)
def test_what_cannot_be_checked_is_told(tmp_path, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    assert message in freeflow(*line, exit_code=2).stderr
