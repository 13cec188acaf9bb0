"""The shipped latent teacher of MNIST's digits, with its codec and without the data set."""

import importlib.resources
import json

import numpy as np
import pytest
import torch
from freeflow_metrics.features import SmallFeatures
from freeflow_transformers.config import MNISTTeacherConfig
from run_helpers import freeflow, sets

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
