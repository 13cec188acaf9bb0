"""The README's first command, small: a real teacher, a real run folder, through the real command line."""

import json

import pytest
from run_helpers import freeflow, sets

SMALL = (
    *("training.images=256", "logging.every_images=64", "evaluation.num_samples=60", "evaluation.batch_size=30"),
    *("evaluation.reference_steps=4", "runtime.threads=1", "trackers=[]"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "run"
    with pytest.warns(UserWarning, match="unreliable"):
        return folder, freeflow(
            "distill", "--preset", "digits", "--output", folder, *sets(*SMALL, "evaluation.num_samples=40")
        ).output


def test_it_says_what_it_did(run):
    folder, output = run
    for expected in ("(floor)", "1 step", "jump to", "tensors taken"):
        assert expected in output
    for name in ("report.md", "comparison.png", "student.safetensors"):
        assert name in output
        assert (folder / name).stat().st_size > 500


def test_the_scores_are_complete_and_count_evaluations(run):
    scores = json.loads((run[0] / "scores.json").read_text())
    assert set(scores) == {"data", "teacher_floor", "teacher", "teacher_1_step", "student", "student_jump"}
    evaluations = {name: row["evaluations"] for name, row in scores.items() if name != "data"}
    assert evaluations == {"teacher_floor": 8, "teacher": 8, "teacher_1_step": 1, "student": 1, "student_jump": 9}
    measured = {"fd_data", "fd_teacher", "kd_data", "accuracy", "spread", "fidelity_mse", "derivative_residual"}
    assert scores["student"].keys() >= measured
    assert scores["teacher_1_step"]["fidelity_mse"] > 0
    assert "fidelity_mse" not in scores["teacher"]


def test_the_student_can_be_evaluated_again(run, tmp_path):
    folder, _ = run
    freeflow("evaluate", "--run", folder, "--output", tmp_path / "scores")
    again = json.loads((tmp_path / "scores" / "scores.json").read_text())
    kept = json.loads((folder / "scores.json").read_text())
    for name in ("fd_data", "fd_teacher", "accuracy", "spread", "fidelity_mse"):
        assert again["student"][name] == pytest.approx(kept["student"][name], rel=1e-4)


def test_a_jump_and_then_the_teacher(run, tmp_path):
    options = ("--sampler", "student-then-teacher", "--steps", 2, "--num", 10)
    assert "5 network evaluations" in freeflow("sample", "--run", run[0], *options, "--output", tmp_path / "x").output


def test_pretrain_writes_a_teacher_that_distils(tmp_path):
    small = sets(*SMALL, "samples.every_images=null", "evaluation.num_samples=30")
    freeflow("pretrain", "--output", tmp_path / "teacher", *small)
    scores = json.loads((tmp_path / "teacher" / "scores.json").read_text())
    assert set(scores) == {"data", "teacher_floor", "teacher", "teacher_1_step"}
    checkpoint = f"teacher.checkpoint={tmp_path / 'teacher' / 'student.safetensors'}"
    options = sets(*SMALL, checkpoint, "evaluation.enabled=false")
    result = freeflow("distill", "--teacher", "sit", "--output", tmp_path / "student", *options)
    assert "42 tensors taken" in result.output


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_bad_teacher_checkpoints_are_one_paragraph(run, tmp_path, damage):
    path = tmp_path / "teacher.safetensors"
    if damage == "truncated":
        path.write_bytes((run[0] / "student.safetensors").read_bytes()[:1000])
    own = sets(*SMALL, f"teacher.checkpoint={path}")
    result = freeflow(
        "distill", "--preset", "digits", "--teacher", "sit", "--output", tmp_path / "run", *own, exit_code=1
    )
    assert "Error:" in result.output
    assert "Traceback" not in result.output
    assert len(result.output.strip().split("\n\n")) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_digits_run_reaches_what_its_page_says(tmp_path):
    """Claims of docs/reference/digits.md, measured."""
    freeflow("distill", "--preset", "digits", "--output", tmp_path / "run", "--set", "trackers=[]")
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    floor, teacher, student = scores["data"], scores["teacher"], scores["student"]
    assert teacher["fd_data"] <= 3 * floor["fd_data"]
    assert scores["teacher_1_step"]["fd_data"] >= 10 * teacher["fd_data"]
    assert student["fd_data"] <= 2 * teacher["fd_data"]
    assert student["accuracy"] >= teacher["accuracy"] - 0.02
    assert abs(student["spread"] / teacher["spread"] - 1) <= 0.1
