"""The shipped latent teacher of MNIST's digits, with its codec and without the data set."""

import importlib.resources
import json

import numpy as np
import pytest
import torch
from freeflow_metrics.features import SmallFeatures
from freeflow_transformers.config import MNISTTeacherConfig
from run_helpers import freeflow, sets

from freeflow_core.config import load_run_config
from freeflow_core.engine.build import Builder
from freeflow_core.evaluation.teacher_samples import TeacherSamples
from freeflow_core.network_file import load_network


def test_the_asset_is_small_and_stored_as_float16():
    resource = importlib.resources.files("freeflow_transformers") / MNISTTeacherConfig.asset
    card = importlib.resources.files("freeflow_transformers") / "assets" / "mnist.md"
    assert len(resource.read_bytes()) + len(card.read_bytes()) <= 6_000_000
    with importlib.resources.as_file(resource) as path:
        state, facts = load_network(path, torch.float16)
    assert state.config["sample_shape"] == [4, 8, 8]
    assert facts["codec"]["name"] == "small-vae"


def test_a_few_guided_steps_draw_the_digits_asked_for(tmp_path):
    labels = torch.arange(40) % 10
    freeflow(
        *("sample", "--teacher", "mnist", "--num", 40, "--steps", 8, "--guidance-weight", 1.5),
        *("--format", "npz", "--output", tmp_path),
    )
    images = np.load(tmp_path / "samples.npz")["arr_0"]
    assert images.shape == (40, 28, 28, 1)
    network = SmallFeatures.packaged("mnist")
    features = network.features(torch.from_numpy(images).permute(0, 3, 1, 2))
    assert (network.logits(features).argmax(1) == labels).float().mean() >= 0.9


@pytest.mark.filterwarnings("ignore:The Fréchet distance is unreliable")
def test_it_is_distilled_and_scored_without_the_data_set(tmp_path):
    settings = (
        *("training.images=128", "logging.every_images=64", "evaluation.num_samples=40", "evaluation.batch_size=40"),
        *("evaluation.reference_steps=4", "runtime.threads=1", "trackers=[]", "samples.per_class=1"),
    )
    freeflow("distill", "--teacher", "mnist", "--output", tmp_path / "run", *sets(*settings))
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert set(scores) == {"teacher_floor", "teacher", "teacher_1_step", "student", "student_jump"}
    assert scores["teacher"]["accuracy"] >= 0.75  # four steps, unguided
    assert scores["teacher_1_step"]["fd"] > 2 * scores["teacher"]["fd"]
    assert (tmp_path / "run" / "comparison.png").stat().st_size > 500


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_default_run_reaches_what_the_readme_says(tmp_path):
    """The README's claims, measured."""
    freeflow("distill", "--output", tmp_path / "run", "--set", "trackers=[]")
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    teacher, student = scores["teacher"], scores["student"]
    assert student["fd"] <= 2 * teacher["fd"]
    assert student["accuracy"] >= teacher["accuracy"] - 0.01
    assert 0.9 <= student["spread_ratio"] <= 1.1
    assert scores["teacher_1_step"]["fd"] >= 20 * teacher["fd"]


def test_its_samples_ship_for_the_default_run(registry):
    config = load_run_config(registry, "distill", preset="mnist")
    teacher = Builder(registry, torch.device("cpu"), 0).teacher(config.teacher)
    assert TeacherSamples(config, teacher, 2 * config.evaluation.num_samples, "float32").load() is not None
