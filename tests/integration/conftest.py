"""A small run that exercises the whole engine in a second: an exact mixture teacher and an MLP student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from freeflow_core.config import RunConfig, load_run_config
from freeflow_core.plugin import Registry

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
def tiny(registry: Registry):
    """``tiny("a.b=c", ...)`` resolves the small run with changes."""

    def make(*assignments: str, command: str = "distill", **overrides: Any) -> RunConfig:
        return load_run_config(registry, command, overrides={**TINY, **overrides}, assignments=assignments)

    return make


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "run"
