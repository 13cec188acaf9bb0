"""A run that has no memory left: what it is told, and that following it helps."""

import re

import psutil
import pytest
import torch
from compare_support import BASE
from run_helpers import TINY_SIT, freeflow, sets

from freeflow_core import api
from freeflow_core.config.compare import load_compare_config
from freeflow_core.engine.run import Run
from freeflow_core.errors import FreeflowError
from freeflow_core.plugin import Registry

SETTINGS = (
    "training.images=256",
    "training.batch_size=32",
    "evaluation.enabled=false",
    "trackers=[]",
    "reference=null",
)


@pytest.fixture
def exhausted(monkeypatch):
    """Every run fails as torch's allocators do."""

    def execute(run):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Run, "execute", execute)


def test_what_is_proposed_needs_less(exhausted, manager, tmp_path):
    config = api.resolve_config("distill", preset="digits", overrides={"teacher": TINY_SIT}, settings=SETTINGS)
    needed = api.plan(config, manager=manager).total
    with pytest.raises(FreeflowError, match=r"Tried to allocate 2\.00 GiB") as caught:
        api.distill(config, output=tmp_path / "run", manager=manager)
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    proposed = re.findall(r"(?:--set |[\"'])((?:training|runtime)\.\w+=\w+)", str(caught.value))
    assert proposed, str(caught.value)
    again = api.resolve_config(
        "distill", preset="digits", overrides={"teacher": TINY_SIT}, settings=(*SETTINGS, *proposed)
    )
    assert api.plan(again, manager=manager).total <= 0.8 * needed


def test_a_machine_that_is_too_small_by_plan_is_said(exhausted, manager, tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"total": 2**20, "available": 2**20}))
    ran = freeflow("distill", "--preset", "digits", *sets(*SETTINGS), "--output", tmp_path / "run", exit_code=1)
    text = " ".join(ran.output.split())
    assert "Tried to allocate 2.00 GiB" in text
    assert "smaller networks" in text
    assert "Traceback" not in text


def test_what_fails_otherwise_is_left_alone(monkeypatch, manager, tmp_path):
    def execute(run):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(Run, "execute", execute)
    config = api.resolve_config("distill", preset="digits", overrides={"teacher": TINY_SIT}, settings=SETTINGS)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        api.distill(config, output=tmp_path / "run", manager=manager)


def test_a_comparison_records_it_with_the_proposal(exhausted, manager, tmp_path):
    config = load_compare_config(
        Registry(manager),
        overrides=BASE,
        comparison={"objectives": ["freeflow-prediction"], "seeds": 1, "budget": "images=64"},
    )
    result = api.compare(config, output=tmp_path / "compare", manager=manager)
    assert result.status == "failed"
    (told,) = result.failed.values()
    assert "Tried to allocate 2.00 GiB" in told
    assert re.search(r"--set (training|runtime)\.\w+=\w+", told), told
