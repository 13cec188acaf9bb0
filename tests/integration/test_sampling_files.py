"""``freeflow sample`` through the real command line, with the shipped digits teacher: what depends on what."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from run_helpers import freeflow, sets
from tiny_files import save_autoencoder

from freeflow_core.math.random import PhiloxDraws
from freeflow_core.tools.sample_files.sample import PreparedSamples, SampleRequest

TEACHER = ("--teacher", "digits", "--steps", 4, "--seed", 5)


def sample(folder, *arguments, model=TEACHER):
    return freeflow("sample", *model, "--output", folder, *arguments)


def arrays(folder):
    with np.load(folder / "samples.npz") as found:
        return found["arr_0"], found["arr_1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A student after a few steps."""
    folder = tmp_path_factory.mktemp("student") / "run"
    settings = ("training.images=128", "evaluation.enabled=false", "runtime.threads=1", "trackers=[]")
    freeflow("distill", "--preset", "digits", "--output", folder, *sets(*settings))
    return folder


def test_images_do_not_depend_on_the_batch_size(tmp_path):
    options = ("--guidance-weight", 2, "--guidance-interval", "0.2,0.9")
    for size in (7, 64):
        sample(
            tmp_path / str(size), "--num", 70, "--format", "npz", "--labels", "random", "--batch-size", size, *options
        )
    (others, other_labels), (images, labels) = arrays(tmp_path / "7"), arrays(tmp_path / "64")
    assert (images.shape, images.dtype) == ((70, 8, 8, 1), np.uint8)
    assert images.std() > 20
    assert np.array_equal(labels, other_labels)
    assert np.abs(images.astype(int) - others).max() <= 1


@pytest.mark.parametrize("labels", ["balanced", "random", (3, 5)])
def test_noise_and_labels_of_an_index_are_the_same_bits_in_any_batch(registry, labels):
    request = SampleRequest(20, None, "digits", "euler", 1, 1.0, (0, 1), 0.5, labels, 3, "float32", ())
    generator = PreparedSamples(request, registry, torch.device("cpu")).generator
    whole = generator.batch(torch.arange(20))
    for rows in (torch.tensor([4]), torch.tensor([17, 2, 3]), torch.arange(5, 12)):
        part = generator.batch(rows)
        assert torch.equal(part.z, whole.z[rows])
        assert torch.equal(part.condition, whole.condition[rows])
    index = torch.arange(20)
    expected = {
        "balanced": index % 10,
        "random": PhiloxDraws(3, index).integers("label", 10),
        (3, 5): torch.tensor([3, 5])[index % 2],
    }
    assert torch.equal(whole.condition, expected[labels])


def test_float64_and_bf16_change_images_by_their_rounding_only(tmp_path):
    for name in ("float32", "bf16", "float64"):
        sample(tmp_path / name, "--num", 40, "--format", "npz", "--precision", name)
    images, half, double = (arrays(tmp_path / name)[0].astype(int) for name in ("float32", "bf16", "float64"))
    assert np.abs(images - double).max() <= 1
    assert np.abs(images - half).max() > 0, "bf16 was not used"
    assert np.abs(images - half).mean() < 4


def test_all_formats_hold_the_same_pictures_and_labels(tmp_path):
    for name in ("npz", "png", "webp"):
        sample(tmp_path / name, "--num", 70, "--format", name, "--labels", "9,1-3")
    images, labels = arrays(tmp_path / "npz")
    assert labels[:6].tolist() == [9, 1, 2, 3, 9, 1]
    for name in ("png", "webp"):
        files = sorted((tmp_path / name).glob(f"*.{name}"))
        assert [file.name for file in files] == [f"{i:06d}.{name}" for i in range(70)]
        pictures = np.stack([np.array(Image.open(file)) for file in files])
        assert np.array_equal(pictures, np.broadcast_to(images, (70, 8, 8, 3)))
        lines = (tmp_path / name / "labels.csv").read_text().splitlines()
        assert lines[0] == "file,label"
        assert lines[1:] == [f"{i:06d}.{name},{label}" for i, label in enumerate(labels)]


def test_a_student_is_known_by_its_weights_wherever_they_lie(run, tmp_path):
    arguments = ("--num", 30, "--format", "npz")
    first = sample(tmp_path / "s", *arguments, model=("--run", run))
    assert "30 samples, 1 network evaluations" in first.output
    copy = tmp_path / "renamed.safetensors"
    copy.write_bytes((run / "student.safetensors").read_bytes())
    again = sample(tmp_path / "s", *arguments, model=("--student", copy))
    assert "All of them were there already." in again.output
    settings = json.loads((tmp_path / "s" / "samples.json").read_text())["settings"]
    assert settings["teacher"] is None
    other = freeflow("sample", "--teacher", "digits", "--output", tmp_path / "s", *arguments, exit_code=2)
    assert "student.network" in other.output
    assert "Traceback" not in other.output


def test_points_are_an_array_and_no_pictures(tmp_path):
    points = ("--teacher", "gaussian-mixture", "--steps", 4)
    sample(tmp_path / "s", "--num", 90, "--format", "npz", "--batch-size", 40, model=points)
    with np.load(tmp_path / "s" / "samples.npz") as found:
        assert found.files == ["arr_0"], "there are no classes"
        assert found["arr_0"].shape == (90, 2)
        assert np.isfinite(found["arr_0"]).all()
    result = freeflow("sample", *points, "--output", tmp_path / "p", "--format", "png", exit_code=2)
    assert "Use --format npz" in " ".join(result.output.split())
    result = freeflow(
        "sample", *points, "--output", tmp_path / "p", "--format", "npz", "--labels", "random", exit_code=2
    )
    assert "has no classes" in result.output


def test_a_grid_is_for_a_look(tmp_path, monkeypatch):
    sample(tmp_path / "s", "--num", 20)
    sample(tmp_path / "s", "--num", 30)
    assert [p.name for p in (tmp_path / "s").iterdir()] == ["grid.png"]
    monkeypatch.setattr("freeflow_core.tools.sample_files.sample._MOST_BYTES_OF_A_GRID", 1000)
    result = freeflow("sample", *TEACHER, "--output", tmp_path / "s", "--num", 20, exit_code=2)
    assert "--format npz" in " ".join(result.output.split())


def test_latents_are_decoded_in_batches_by_the_codec_that_is_named_or_known(tmp_path, monkeypatch):
    save_autoencoder(tmp_path / "vae")
    teacher = ("--teacher", "gaussian-mixture", "--steps", 2, "--set", "teacher.sample_shape=[4,8,8]")
    codec = ("--set", "codec=sd-vae", "--set", f"codec.checkpoint={tmp_path / 'vae'}")
    several = ("--set", "codec.decode_batch_size=3")
    sample(tmp_path / "a", "--num", 20, "--format", "npz", *codec, model=teacher)
    sample(tmp_path / "b", "--num", 20, "--format", "npz", *codec, *several, "--precision", "float64", model=teacher)
    with np.load(tmp_path / "a" / "samples.npz") as one, np.load(tmp_path / "b" / "samples.npz") as two:
        assert one["arr_0"].shape == (20, 16, 16, 3)
        assert np.abs(one["arr_0"].astype(int) - two["arr_0"]).max() <= 1
        assert one["arr_0"].std() > 10
    result = freeflow("sample", *teacher, "--output", tmp_path / "c", "--format", "npz", exit_code=2)
    assert "4 channels" in result.output
    assert "--set codec=sd-vae" in " ".join(result.output.split())
    monkeypatch.setattr("freeflow_toy.gaussian_mixture.GaussianMixtureTeacher.codec", "sd-vae", raising=False)
    sample(tmp_path / "d", "--num", 20, "--format", "npz", *codec[2:], model=teacher)
    assert (tmp_path / "d" / "samples.npz").read_bytes() == (tmp_path / "a" / "samples.npz").read_bytes()
