"""Three lines of Python: a run that shows itself, a student that samples, images to look at."""

import numpy as np
import pytest
import torch
from PIL import Image

from freeflow_core import api
from freeflow_core.engine.build import Builder
from freeflow_core.errors import CheckpointError, ConfigError

QUICK = {
    "teacher": "digits",
    "training": {"images": 128, "batch_size": 64},
    "evaluation": {"num_samples": 40, "reference_steps": 2, "cache": False, "guidance_weight": 1.5},
    "trackers": [],
    "runtime": {"device": "cpu", "threads": 1},
}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return api.distill(**QUICK, output=tmp_path_factory.mktemp("python") / "run")


def test_a_run_shows_its_table_and_its_picture(result):
    shown = result._repr_html_()
    assert "student, 1 step" in shown
    assert f"{result.scores['student']['fd_data']:.4g}" in shown
    assert "data:image/png;base64," in shown
    assert result._repr_png_().startswith(b"\x89PNG")
    assert api.RunResult(result.folder, "stopped")._repr_png_() is None
    with pytest.raises(CheckpointError):
        _ = api.RunResult(result.folder, "stopped").student


def test_a_student_samples_the_same_whatever_the_batches(result):
    student = result.student
    assert (student.teacher.name, student.guidance, student.device.type) == ("digits", 1.5, "cpu")
    images = student.sample(12, labels=[3, 7], seed=5)
    assert images.tensor.shape == (12, 1, 8, 8)
    assert images.tensor.dtype == torch.uint8
    assert images.labels.tolist() == [3, 7] * 6
    again = api.load_student(result.folder).to("cpu").sample(5, labels=[3, 7], seed=5, batch_size=2)
    torch.testing.assert_close(again.tensor.int(), images.tensor[:5].int(), atol=1, rtol=0)
    assert not torch.equal(student.sample(12, labels=[3, 7], seed=6).tensor, images.tensor)
    assert student.sample(3, labels=4).labels.tolist() == [4, 4, 4]
    assert student.sample(12).labels.tolist() == [*range(10), 0, 1]
    for wrong in ({"num": 0}, {"labels": [11]}, {"steps": 2}):
        with pytest.raises(ConfigError):
            student.sample(**wrong)


def test_the_codec_is_built_once_for_all_samples_on_a_device(result, monkeypatch):
    built, real = [], Builder.build
    monkeypatch.setattr(
        Builder, "build", lambda self, kind, *given, **named: built.append(kind) or real(self, kind, *given, **named)
    )
    student = api.load_student(result.folder)
    first = student.sample(4, labels=3, seed=5).tensor
    student.sample(4, seed=6, guidance=1.0)
    assert torch.equal(student.sample(4, labels=3, seed=5).tensor, first)
    assert built.count("codec") == 1


def test_samples_are_those_of_the_command(result, tmp_path):
    written = api.sample(student=result.folder, num=4, seed=5, output=tmp_path)
    torch.testing.assert_close(written.images.int(), result.student.sample(4, seed=5).tensor.int(), atol=1, rtol=0)


def test_images_are_a_sequence_of_pictures(result, tmp_path):
    images = result.student.sample(6)
    assert len(images) == 6
    assert isinstance(images[0], Image.Image)
    assert images[0].size == (8, 8)
    assert images[2:4].labels.tolist() == [2, 3]
    assert np.asarray(images).shape == (6, 8, 8, 1)
    images.save(tmp_path / "grid.webp")
    assert Image.open(tmp_path / "grid.webp").size == images.grid().size
    assert images._repr_png_().startswith(b"\x89PNG")
    states = api.Images(torch.zeros(3, 2))
    assert states._repr_png_() is None
    with pytest.raises(ConfigError, match="states"):
        states.grid()


def test_a_student_is_scored_by_its_folder(result, capsys):
    found = api.evaluate(student=result.folder, evaluation={"num_samples": 20}, progress=True)
    assert found.config.evaluation.num_samples == 20
    assert {"teacher", "student"} <= set(found.scores)
    assert "student" in capsys.readouterr().err, "the bar"
    with pytest.raises(ConfigError):
        api.evaluate()
