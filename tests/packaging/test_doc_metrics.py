"""The page on diagnostics knows every number that a run logs."""

import json
import re
from pathlib import Path

import pytest
from run_helpers import TINY

from freeflow_core import api

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "read-the-diagnostics.md").read_text("utf-8")


@pytest.mark.parametrize("objective", ["freeflow", "freeflow-correction"])
def test_every_metric_of_a_run_is_explained(objective, tmp_path, manager):
    config = api.resolve_config(
        "distill",
        overrides=TINY | {"objective": objective, "training": {"images": 32, "batch_size": 16}, "trackers": []},
        settings=["objective.check_derivative_every=1"] if objective == "freeflow" else [],
        manager=manager,
    )
    folder = api.distill(config, output=tmp_path / "run", manager=manager).folder
    metrics = json.loads((folder / "metrics.jsonl").read_text("utf-8").splitlines()[-1])
    for name in metrics.keys() - {"images"}:
        general = re.sub(r"^\w+/gradient_norm$", "<role>/gradient_norm", name)
        assert f"`{general}`" in PAGE, name
