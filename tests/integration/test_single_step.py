"""A student that is worse than a single step of its teacher is said early in the run and in its report."""

import json
import logging

import pytest
import torch
from run_helpers import TINY

from freeflow_core import api
from freeflow_core.config.load import resolve
from freeflow_core.evaluation import single_step
from freeflow_core.evaluation.teacher_samples import TeacherSamples
from freeflow_core.network_file import load_tensors, save_tensors
from freeflow_core.plugin import Manager, Registry

IMAGES = 8_192
DISTANCE = "single_step_distance"


@pytest.fixture
def distill(tmp_path):
    """A run of 64 steps; its result, and what it measured of single steps, by images seen."""

    def run(name="run", rate=1e-3, images=IMAGES, **evaluation):
        settings = {
            **TINY,
            "name": name,
            "objective": {"name": "freeflow-prediction"},
            "training": {"images": images, "batch_size": 128, "optimizer": {"learning_rate": rate}},
            "logging": {"every_images": images},
            "evaluation": {"enabled": False, **evaluation},
        }
        result = api.distill(resolve(Registry(Manager.load()), settings), output=tmp_path / name)
        lines = [json.loads(line) for line in result.files["metrics"].read_text("utf-8").splitlines()]
        kept = {
            line["images"]: [line[f"evaluation/{row}/{DISTANCE}"] for row in ("student", "teacher_1_step")]
            for line in lines
            if f"evaluation/student/{DISTANCE}" in line
        }
        return result, kept

    return run


def warned(caplog):
    return [r.getMessage() for r in caplog.records if "single step" in r.getMessage()]


def test_a_student_that_learns_is_compared_twice_and_not_warned_of(distill, caplog):
    with caplog.at_level(logging.WARNING, "freeflow"):
        result, found = distill()
    assert list(found) == [IMAGES // 4, IMAGES]
    assert all(student < teacher for student, teacher in found.values())
    assert found[IMAGES // 4][1] == found[IMAGES][1]  # the teacher's samples are drawn once
    assert warned(caplog) == []
    assert "closer to the teacher's samples" in result.files["report"].read_text("utf-8")


def test_samples_of_a_file_that_the_run_names_are_taken(distill, tmp_path, monkeypatch):
    given = tmp_path / "samples.safetensors"
    save_tensors(given, {"x": torch.zeros(0)}, {})
    monkeypatch.setattr(TeacherSamples, "named", lambda self: (torch.full((self._number, 2), 50.0), 25.0))
    _, found = distill(teacher_samples=str(given))
    assert all(distance > 50 for pair in found.values() for distance in pair)


def test_a_ruined_student_is_told_in_the_run_and_in_its_report(distill, caplog):
    with caplog.at_level(logging.WARNING, "freeflow"):
        result, found = distill(rate=10.0)
    assert all(student > teacher for student, teacher in found.values())
    told = warned(caplog)
    assert len(told) == 2
    assert f"After {IMAGES // 4:,} images" in told[0]
    report = result.files["report"].read_text("utf-8")
    for text in (*told, report):
        causes = [text.index(cause) for cause in ("random weights", "learning_rate", "freeflow teacher check")]
        assert causes == sorted(causes)


def test_it_changes_no_weight_and_can_be_switched_off(distill):
    looked, _ = distill()
    plain, found = distill("plain", single_step=False)
    assert found == {}
    tensors = [load_tensors(result.files["student"])[0] for result in (looked, plain)]
    assert all(tensors[0][name].equal(tensors[1][name]) for name in tensors[0])


def test_a_short_run_is_not_looked_at_and_a_look_that_fails_costs_no_run(distill, monkeypatch, caplog):
    monkeypatch.setattr(single_step, "energy_distance", lambda *_: 1 / 0)
    assert distill(images=IMAGES - 128)[1] == {}
    assert warned(caplog) == []
    with caplog.at_level(logging.WARNING, "freeflow"):
        result, found = distill("longer")
    assert (result.status, found) == ("finished", {})
    assert "ZeroDivisionError" in warned(caplog)[0]
