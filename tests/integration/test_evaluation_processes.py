"""Several processes evaluate together: each draws its share, the scores are one process's, and nobody waits for long."""

import json
from itertools import pairwise

import pytest
from run_helpers import finish, freeflow, processes

from freeflow_core.config import to_yaml

NOTED = """
import os, sys, time
from pathlib import Path
from freeflow_core.evaluation.sampling import Generator

slow, real, drawn = float(sys.argv.pop()), Generator.batch, []

def batch(self, index, *given, **named):
    drawn.append(int(index[0]))
    time.sleep(slow)
    return real(self, index, *given, **named)

Generator.batch = batch
from freeflow_cli.main import main
try:
    main()
finally:
    Path(sys.argv[0]).with_name(f"drawn-{os.environ['RANK']}").write_text(" ".join(map(str, drawn)))
"""
SETTINGS = (
    "evaluation.enabled=true", "evaluation.evaluators=[energy-distance, fidelity]", "evaluation.num_samples=64",
    "evaluation.batch_size=8", "evaluation.reference_steps=4", "evaluation.cache=false",
)  # fmt: skip


def launched(tiny, tmp_path, number, slow, *settings):
    """A run of ``number`` processes whose batches take ``slow`` seconds more; how many batches each has drawn."""
    script, config, output = tmp_path / "noted.py", tmp_path / "tiny.yaml", tmp_path / "run"
    script.write_text(NOTED, "utf-8")
    config.write_text(to_yaml(tiny(*SETTINGS, *settings)))
    finish(processes(number, script, "distill", "--config", config, "--output", output, slow))
    shares = [tmp_path / f"drawn-{rank}" for rank in range(number)]
    return output, [len(share.read_text().split()) for share in shares]


def scores(folder):
    rows = json.loads((folder / "scores.json").read_text())
    return {row: {k: v for k, v in found.items() if k != "ms_per_image"} for row, found in rows.items()}


def assert_shared(output, shares, tmp_path):
    assert all(abs(one - other) <= 8 for one, other in pairwise(shares)), shares
    assert min(shares) >= 16
    freeflow("evaluate", "--run", output, "--output", tmp_path / "alone")
    assert scores(output) == scores(tmp_path / "alone")


def test_two_processes_draw_in_halves_and_score_as_one(tiny, tmp_path):
    output, shares = launched(tiny, tmp_path, 2, 0.0)
    assert_shared(output, shares, tmp_path)
    assert len(list((output / "samples").iterdir())) == 1


@pytest.mark.long
def test_an_evaluation_may_take_longer_than_processes_wait(tiny, tmp_path):
    """Twenty batches a process of 1.5 s each, and 15 s that one waits for the others."""
    output, shares = launched(tiny, tmp_path, 4, 1.5, "runtime.timeout_seconds=15")
    assert_shared(output, shares, tmp_path)
