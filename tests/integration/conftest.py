"""A small run that exercises the whole engine in a second: an exact mixture teacher and an MLP student."""

from typing import Any

import pytest

from freeflow_core.config import load_run_config

TINY: dict[str, Any] = {
    "name": "tiny",
    "teacher": {"name": "gaussian-mixture", "layout": "ring"},
    "student": {"name": "mlp", "width": 32, "depth": 2},
    "objective": {"name": "freeflow", "weight_power": 0.5},
    "training": {"images": 160, "batch_size": 16, "optimizer": {"learning_rate": 1e-3}},
    "logging": {"every_images": 32},
    "evaluation": {"enabled": False},
    "runtime": {"device": "cpu", "threads": 1},
}


@pytest.fixture
def tiny(registry):
    """``tiny("a.b=c", ...)`` resolves the small run with changes."""

    def make(*assignments, command="distill", **overrides):
        return load_run_config(registry, command, overrides={**TINY, **overrides}, assignments=assignments)

    return make


@pytest.fixture
def output(tmp_path):
    return tmp_path / "run"
