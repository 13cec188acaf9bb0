"""The packaged features of small images, a user's own, and what their distances mean."""

import importlib.resources
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from freeflow_metrics.classes import ClassAccuracyEvaluator
from freeflow_metrics.config import ClassAccuracyConfig, ClassProbabilityConfig, FrechetConfig
from freeflow_metrics.features import ASSETS, FAMILY, SmallFeatures, batch_features
from freeflow_metrics.frechet import PACKAGED, FrechetEvaluator, frechet_distance, reference_statistics
from freeflow_metrics.make_statistics import main as make_statistics_main
from freeflow_metrics.make_statistics import statistics
from freeflow_metrics.train_features import main, make_source, train, training_digest
from freeflow_metrics.verifiers import ClassProbability
from typer.testing import CliRunner

from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.interfaces import EvaluationBatch
from freeflow_core.network_file import load_network
from freeflow_core.types import NetworkState


@pytest.fixture(scope="module")
def network():
    return SmallFeatures.packaged()


def application():
    app = typer.Typer()
    app.command()(main)
    return app


def uniform_noise(count):
    return torch.randint(0, 256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_the_asset_is_small_and_names_held_out_digits(network, digits):
    asset = importlib.resources.files("freeflow_metrics") / ASSETS["digits"]
    assert len(asset.read_bytes()) <= 300_000
    images, labels = digits.held_out()
    predicted = network.logits(network.features(images)).argmax(1)
    assert (predicted == labels).double().mean() >= 0.97


def test_the_asset_was_trained_on_today_s_training_split_alone(digits):
    with importlib.resources.as_file(importlib.resources.files("freeflow_metrics") / ASSETS["digits"]) as path:
        _, facts = load_network(path)
    assert facts["training_digest"] == training_digest(digits.training_images()[0])


def test_distances_order_real_collapsed_and_random_images(digits, evaluation_context, score_row):
    (training, labels), (held_out, _) = digits.training_images(), digits.held_out()
    evaluator = FrechetEvaluator(FrechetConfig())
    evaluator.prepare(evaluation_context(held_out))
    floor = score_row(evaluator, "data", training)["fd_data"]
    missing_class = score_row(evaluator, "student", training[labels != 3])["fd_data"]
    noise = score_row(evaluator, "student", uniform_noise(1000))["fd_data"]
    assert 0 < floor < 1
    assert missing_class > 3 * floor
    assert noise > 20 * floor


def test_teacher_s_distance_and_what_is_left_out(digits, evaluation_context, score_row):
    images = digits.training_images()[0]
    evaluator = FrechetEvaluator(FrechetConfig())
    evaluator.prepare(evaluation_context())
    assert score_row(evaluator, "student", images) == {}
    evaluator.observe_reference(EvaluationBatch(images[:600], None))
    evaluator.observe_reference(EvaluationBatch(images[600:], None))
    same = score_row(evaluator, "student", images)
    assert set(same) == {"fd_teacher", "fd_teacher_error"}
    assert same["fd_teacher"] < 1e-6
    assert score_row(evaluator, "teacher", images) == {}


def test_stored_statistics_give_the_same_distance_as_held_out_images(tmp_path, digits, evaluation_context, score_row):
    features = SmallFeatures.packaged().features(digits.held_out()[0]).double().numpy()
    np.savez(tmp_path / "stats.npz", arr_0=features[:1], mu=features.mean(0), sigma=np.cov(features, rowvar=False))
    config = FrechetConfig(reference_statistics=str(tmp_path / "stats.npz"))
    evaluator = FrechetEvaluator(config)
    evaluator.prepare(evaluation_context(digits.held_out()[0]))
    scores = score_row(evaluator, "student", digits.training_images()[0])
    assert set(scores) == {"fd", "fd_error", "fd_data", "fd_data_error"}
    assert scores["fd"] == pytest.approx(scores["fd_data"], rel=1e-6)


def test_mnist_s_statistics_are_packaged():
    test, train = (reference_statistics(FrechetConfig(features="mnist", reference_statistics=n), 64) for n in PACKAGED)
    assert 0.15 < frechet_distance(*test, *train) < 0.2
    with pytest.raises(ConfigError, match="mnist-test with features: mnist"):
        FrechetEvaluator(FrechetConfig(reference_statistics="mnist-test"))


def test_the_statistics_command_measures_either_split(tmp_path, digits):
    app = typer.Typer()
    app.command()(make_statistics_main)
    for split, found in (("held-out", digits.held_out()), ("training", digits.training_images())):
        path = tmp_path / split / "digits.npz"
        arguments = ["--source", "digits", "--features", "digits", "--split", split, "--output", str(path)]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        mean, covariance = reference_statistics(FrechetConfig(reference_statistics=str(path)), 48)
        moments = statistics(SmallFeatures.packaged(), found[0])
        torch.testing.assert_close(mean, moments.mean)
        torch.testing.assert_close(covariance, moments.covariance)
    result = CliRunner().invoke(app, ["--source", "prior", "--output", str(path)])
    assert result.exit_code == 1
    assert "no held-out images" in result.output


def test_features_are_computed_once_per_batch(network, monkeypatch):
    batch = EvaluationBatch(uniform_noise(3), None)
    first = batch_features(network, batch)
    monkeypatch.setattr(SmallFeatures, "features", lambda *_: pytest.fail("computed twice"))
    assert batch_features(SmallFeatures.packaged(), batch) is first
    assert first.dtype == torch.float64


@pytest.mark.parametrize("part", ["train", "t10k"])
def test_the_mnist_asset_names_digits_it_has_not_seen(part):
    folder = Path(__file__).parents[4] / "shared" / "data" / "mnist"
    if not folder.is_dir():
        pytest.skip("MNIST's files are not beside this checkout")
    features = SmallFeatures.packaged("mnist")
    source = make_source("mnist", {"path": str(folder)})
    images, labels = source.training_images() if part == "train" else source.held_out()
    predicted = features.logits(features.features(images[:2000])).argmax(1)
    assert (predicted == labels[:2000]).double().mean() >= 0.98
    asset = importlib.resources.files("freeflow_metrics") / ASSETS["mnist"]
    with importlib.resources.as_file(asset) as path:
        assert path.stat().st_size <= 500_000
        _, facts = load_network(path)
    assert (facts["training_digest"] == training_digest(images)) == (part == "train")


def test_a_network_of_one_s_own_serves_every_evaluator_that_takes_one(tmp_path, digits, score_row):
    path = tmp_path / "mine.safetensors"
    run = CliRunner().invoke(application(), ["--output", str(path), "--steps", "100", "--source", "digits"])
    assert run.exit_code == 0, run.output
    options = {"features": "file", "features_file": path}
    frechet = FrechetEvaluator(FrechetConfig(**options))
    accuracy = ClassAccuracyEvaluator(ClassAccuracyConfig(**options))
    verifier = ClassProbability(ClassProbabilityConfig(**options))
    images, labels = digits.held_out()
    assert score_row(accuracy, "data", images, labels)["accuracy"] > 0.9
    assert verifier.score(images, labels).mean() > verifier.score(images, (labels + 1) % 10).mean()
    assert frechet._network.name == accuracy._network.name != "digits"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "prior"], "no labelled images"),
        (["--source", "mnist", "--set", "path=nowhere"], "no folder nowhere"),
        (["--source", "digitz"], "digits"),
    ],
)
def test_sources_without_a_use_are_explained(tmp_path, arguments, message):
    run = CliRunner().invoke(application(), ["--output", str(tmp_path / "x"), "--steps", "1", *arguments])
    assert run.exit_code == 1
    assert message in run.output
    assert not list(tmp_path.iterdir())


def test_training_is_deterministic_and_leaves_the_global_generator_alone(digits):
    images, labels = digits.training_images()
    state = torch.random.get_rng_state()
    one, two = (train(images, labels, num_classes=10, steps=3, seed=0).state_dict() for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = train(images, labels, num_classes=10, steps=3, seed=1).state_dict()
    assert not torch.equal(one["embed.weight"], other["embed.weight"])


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"reference_statistics": "{}/other.npz"}, "48 dimensions"),
        ({"reference_statistics": "{}/odd.npz"}, "cannot be read"),
        ({"reference_statistics": "{}/missing.npz"}, "cannot be read"),
        ({"reference_statistics": "cifar10"}, "features: inception"),
        ({"features": "file"}, "set both"),
        ({"features_file": "x.safetensors"}, "set both"),
    ],
)
def test_options_of_no_use_are_explained(tmp_path, options, error):
    np.savez(tmp_path / "other.npz", mu=np.zeros(2), sigma=np.eye(2))
    np.savez(tmp_path / "odd.npz", mean=np.zeros(2))
    with pytest.raises((ConfigError, ValueError), match=error):
        FrechetEvaluator(FrechetConfig(**{name: value.format(tmp_path) for name, value in options.items()}))


def test_other_images_and_networks_are_refused(network):
    with pytest.raises(ConfigError, match="features: inception"):
        network.features(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(CheckpointError, match="configuration of no use"):
        SmallFeatures(NetworkState(FAMILY, {"pockets": 3}, {}), "x")
