"""What a table is made of before it is looked at: evaluators that fit, and the teacher's samples, kept and checked."""

import pytest
import torch
from freeflow_metrics.distance import EnergyDistanceEvaluator
from run_helpers import TINY_SIT

from freeflow_core import api
from freeflow_core.engine.run import Run
from freeflow_core.errors import ConfigError, PluginError
from freeflow_core.evaluation.scoring import Scoring
from freeflow_core.network_file import load_tensors, save_tensors

SMALL = (
    *("training.images=32", "evaluation.enabled=true", "evaluation.num_samples=64", "evaluation.batch_size=32"),
    *("evaluation.reference_steps=4", "evaluation.evaluators=[energy-distance, fidelity]"),
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FREEFLOW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "teacher-samples"


def scores_of(config, output, manager):
    return Run(config, "distill", manager, output=output, resume=False, scorer=Scoring).execute().scores


def timeless(scores):
    return {row: {k: v for k, v in values.items() if k != "ms_per_image"} for row, values in scores.items()}


def test_the_teachers_samples_are_drawn_once_and_anew_where_they_cannot_be_read(tiny, tmp_path, manager, cache):
    first = scores_of(tiny(*SMALL), tmp_path / "first", manager)
    (kept,) = cache.glob("*.safetensors")
    tensors, metadata = load_tensors(kept)
    assert tensors["x"].shape == (128, 2)  # and as many again, for the floor
    again = scores_of(tiny(*SMALL), tmp_path / "again", manager)
    assert timeless(again) == timeless(first)
    assert "ms_per_image" not in again["teacher"]
    # They are the file's, not drawn anew: others in it show.
    save_tensors(kept, {"x": tensors["x"] + 5}, metadata)
    assert scores_of(tiny(*SMALL), tmp_path / "moved", manager)["student"]["energy_teacher"] > 5
    kept.write_bytes(kept.read_bytes()[:100])
    assert timeless(scores_of(tiny(*SMALL), tmp_path / "damaged", manager)) == timeless(first)


@pytest.mark.parametrize(
    "change",
    ["teacher.radius=1", "evaluation.reference_steps=5", "evaluation.seed=7", "evaluation.reference_sampler=euler"],
)
def test_other_settings_have_other_samples(tiny, tmp_path, manager, cache, change):
    scores_of(tiny(*SMALL), tmp_path / "first", manager)
    scores_of(tiny(*SMALL, change), tmp_path / "second", manager)
    first, second = (load_tensors(path)[0]["x"] for path in cache.glob("*.safetensors"))
    assert not torch.equal(first, second)


def test_named_samples_are_taken_where_they_fit(tiny, tmp_path, manager, cache):
    scores_of(tiny(*SMALL), tmp_path / "first", manager)
    (kept,) = cache.glob("*.safetensors")
    tensors, metadata = load_tensors(kept)
    named = tmp_path / "named.safetensors"
    save_tensors(named, {"x": tensors["x"] + 5}, metadata)
    kept.unlink()
    given = f"evaluation.teacher_samples={named}"
    for number, fewer in enumerate(("evaluation.num_samples=64", "evaluation.num_samples=40")):
        moved = scores_of(tiny(*SMALL, given, fewer), tmp_path / f"fits-{number}", manager)
        assert moved["student"]["energy_teacher"] > 5
    for number, other in enumerate(("evaluation.seed=7", "evaluation.num_samples=80")):
        drawn = scores_of(tiny(*SMALL, given, other), tmp_path / f"other-{number}", manager)
        assert drawn["student"]["energy_teacher"] < 5


def test_a_file_of_samples_that_is_not_there_is_refused_before_the_first_step(tiny, output, manager):
    config = tiny(*SMALL, "evaluation.teacher_samples=nowhere.safetensors")
    with pytest.raises(ConfigError, match="no checkpoint file"):
        Run(config, "distill", manager, output=output, resume=False, scorer=Scoring)
    with pytest.raises(ConfigError, match="no checkpoint file"):
        api.plan(config)


def test_the_floor_is_the_teacher_against_itself_and_both_can_be_left_out(tiny, tmp_path, manager, cache):
    settings = (*SMALL, "evaluation.num_samples=2000", "evaluation.batch_size=500", "evaluation.cache=false")
    scores = scores_of(tiny(*settings), tmp_path / "run", manager)
    assert abs(scores["teacher_floor"]["energy_teacher"]) < 0.01 < scores["student"]["energy_teacher"]
    assert not cache.exists()
    assert "teacher_floor" not in scores_of(tiny(*SMALL, "evaluation.floor=false"), tmp_path / "without", manager)


def test_scores_of_pairs_see_as_many_samples_as_they_are_given(tiny, tmp_path, manager, cache):
    whole, few, least = (
        scores_of(tiny(*SMALL, *given), tmp_path / name, manager)["student"]
        for name, given in {
            "whole": (),
            "few": ("evaluation.num_pairs=32",),
            "least": ("evaluation.num_samples=32",),
        }.items()
    )
    assert few["fidelity_mse"] == least["fidelity_mse"] != whole["fidelity_mse"]
    assert few["energy_teacher"] == whole["energy_teacher"]


def test_an_evaluator_that_does_not_fit_is_refused_before_the_first_step(tiny, output, manager):
    config = tiny(*SMALL, "evaluation.evaluators=[frechet]")
    with pytest.raises(ConfigError, match="frechet"):
        Run(config, "distill", manager, output=output, resume=False, scorer=Scoring)
    with pytest.raises(ConfigError, match="frechet"):
        api.plan(config)


def test_an_evaluator_that_breaks_is_named(tiny, output, manager, monkeypatch):
    monkeypatch.setattr(EnergyDistanceEvaluator, "update", lambda self, batch: batch.no_such_thing)
    with pytest.raises(PluginError, match=r"energy-distance.*AttributeError"):
        Run(tiny(*SMALL), "distill", manager, output=output, resume=False, scorer=Scoring)


def test_a_teacher_without_better_ones_gets_evaluators_that_fit(tiny, output, manager):
    scores = scores_of(tiny(*SMALL, "evaluation.evaluators=null"), output, manager)
    assert {"energy_teacher", "fidelity_mse"} <= set(scores["student"])


def test_a_dry_run_fetches_nothing(manager, cache, monkeypatch):
    monkeypatch.delenv("FREEFLOW_OFFLINE", raising=False)
    overrides = {"teacher": TINY_SIT, "codec": "sd-vae", "reference": None, "evaluation": {"evaluators": ["spread"]}}
    plan = api.plan(api.resolve_config("distill", preset="digits", overrides=overrides), manager=manager)
    assert any("sd-vae" in warning for warning in plan.warnings)
