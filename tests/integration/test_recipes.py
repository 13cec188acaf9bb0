"""The paper's recipes: each is planned without weights, and takes real steps on a small network of the same format."""

import json

import pytest

from freeflow_core import api

RECIPES = ("sit-repa-xl2-256", "sit-xl2-256", "sit-repa-xl2-512", "dit-b2-ablation")


# A plan goes through every layer of every pass: seconds of a quiet machine for XL/2.
PLANNED = [pytest.param(name, marks=() if name == "dit-b2-ablation" else pytest.mark.long) for name in RECIPES]


@pytest.mark.parametrize("preset", PLANNED)
def test_a_recipe_is_planned_without_weights_device_or_memory(preset, monkeypatch, tmp_path):
    monkeypatch.setenv("FREEFLOW_CACHE", str(tmp_path))
    monkeypatch.setenv("FREEFLOW_OFFLINE", "1")
    plan = api.plan(api.resolve_config("distill", preset=preset))
    weights = {network.name: network.parameters for network in plan.networks}
    expected = 130e6 if preset == "dit-b2-ablation" else 675e6
    assert weights["teacher"] == pytest.approx(expected, rel=0.02)
    assert weights["student"] > weights["teacher"]  # the duration's and the guidance's embeddings
    assert not any(tmp_path.iterdir())


# Minutes and gigabytes each on a CPU, most of them the look at a teacher that was never trained.
@pytest.mark.long
@pytest.mark.timeout(1200)  # many minutes on a busy machine
@pytest.mark.parametrize("preset", RECIPES)
def test_a_recipe_takes_steps_on_a_small_network_of_the_same_format(preset, tmp_path):
    settings = (
        *("teacher.initialise=random", "teacher.size=S", "training.images=8", "training.batch_size=4", "trackers=[]"),
        *("runtime.device=cpu", "runtime.precision=float32", "evaluation.enabled=false", "samples.every_images=null"),
        *("codec=pixels", "logging.every_images=4"),
    )
    config = api.resolve_config("distill", preset=preset, settings=settings)
    result = api.distill(config, output=tmp_path / "run")
    assert result.status == "finished"
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    metrics = [line for line in lines if "student/loss" in line]
    assert len(metrics) == 2
    assert all(line["student/prediction_residual"] > 0 for line in metrics)
    assert (tmp_path / "run" / "student.safetensors").is_file()
