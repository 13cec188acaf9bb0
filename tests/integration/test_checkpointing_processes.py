"""Recomputed activations under a distributed wrapper: two processes train as one does without recomputation."""

import pytest
import torch
from run_helpers import TINY_SIT
from test_processes import launch, weights

from freeflow_core import api
from freeflow_core.config import to_yaml


@pytest.mark.long
def test_two_processes_that_recompute_equal_one_that_does_not(manager, tmp_path):
    config = api.resolve_config(
        "distill",
        overrides={
            "name": "recompute",
            "teacher": TINY_SIT | {"depth": 2},
            "student": "transformer",
            "objective": {"name": "freeflow", "derivative": "forward-mode", "guidance_max": 2.0},
            "codec": "states",
            "training": {"images": 64, "batch_size": 16},
            "samples": {"per_class": 1},
            "evaluation": {"enabled": False},
            "runtime": {"device": "cpu", "threads": 1, "precision": "float64"},
        },
        manager=manager,
    )
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    one = api.distill(config, output=tmp_path / "one", manager=manager).folder
    launch(tmp_path / "run.yaml", tmp_path / "two", "--set", "runtime.activation_checkpointing=true")
    for name in ("student", "student.ema", "fake_velocity"):
        expected, found = weights(one, name), weights(tmp_path / "two", name)
        for key, value in expected.items():
            assert torch.allclose(value, found[key], atol=1e-9), f"{name} {key}"
