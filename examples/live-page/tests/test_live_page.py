"""The page of a real run, of one that is resumed, and of one that fails."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pytest
from freeflow_live_page.page import render
from freeflow_live_page.plugin import LivePage
from freeflow_live_page.record import MOST_POINTS, Record

from freeflow_core import api
from freeflow_core.plugin import Manager, hookimpl
from freeflow_core.types import Progress, RunInfo

SMALL = {
    "name": "small",
    "teacher": {"name": "gaussian-mixture", "num_classes": 4},
    "student": {"name": "mlp", "width": 16, "depth": 1},
    "objective": "freeflow",
    "codec": "states",
    "training": {"images": 256, "batch_size": 16},
    "logging": {"every_images": 32},
    "samples": {"every_images": 64},
    "evaluation": {"num_samples": 64, "batch_size": 32, "reference_steps": 2, "evaluators": ["fidelity"]},
    "runtime": {"device": "cpu", "threads": 1},
}


def distil(output: Path, *plugins: Any, resume: bool = False, **changes: Any) -> str:
    """Run with the observers; the page as it stands at the end."""
    manager = Manager.load()
    for number, plugin in enumerate([LivePage(), *plugins]):
        manager.register(plugin, f"observer-{number}")
    config = api.resolve_config("distill", overrides={**SMALL, **changes}, manager=manager)
    try:
        api.distill(config, output=output, resume=resume, manager=manager)
    finally:
        page = (output / "live.html").read_text("utf-8")
    return page


class Looks:
    """Reads the page in the middle of the run, as a browser would."""

    pages: list[str]

    def __init__(self) -> None:
        self.pages = []

    @hookimpl
    def freeflow_checkpoint_saved(self, run: RunInfo) -> None:
        self.pages.append((run.folder / "live.html").read_text("utf-8"))
        assert not list(run.folder.glob(".live*"))


def test_a_run_leaves_a_page_with_curves_samples_and_scores(tmp_path: Path) -> None:
    looks = Looks()
    page = distil(tmp_path / "run", looks)
    assert 'http-equiv="refresh"' in looks.pages[0]
    assert 'http-equiv="refresh"' not in page
    assert "small" in page
    assert ">finished<" in page
    assert 'value="256" max="256"' in page
    assert page.count("<polyline") >= 5
    assert "student/prediction_residual: " in page
    assert 'src="data:image/png;base64,' in page
    assert "fidelity_mse" in page
    assert not re.search(r'(?:src|href)="(?!data:)', page), "the page needs another file"


def test_a_resumed_run_keeps_its_curves(tmp_path: Path) -> None:
    first = distil(tmp_path / "run", training={**SMALL["training"], "stop_at_images": 128})
    assert ">stopped<" in first
    page = distil(tmp_path / "run", resume=True)
    points = re.search(r'points="([^"]*)"', page)
    assert points is not None
    assert len(points[1].split()) == 256 // 32


class Breaks:
    @hookimpl
    def freeflow_step_finished(self, progress: Progress) -> None:
        if progress.images >= 64:
            raise KeyboardInterrupt


def test_the_page_says_how_it_ended(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        distil(tmp_path / "run", Breaks())
    page = (tmp_path / "run" / "live.html").read_text("utf-8")
    assert ">interrupted<" in page
    assert 'http-equiv="refresh"' not in page


def make_record(**changes: Any) -> Record:
    values = {"name": "<b>run</b>", "command": "distill", "folder": Path("nowhere"), "config_yaml": ""}
    return Record(RunInfo(config={"training": {"images": 1000}}, **{**values, **changes}))


def test_names_are_escaped() -> None:
    record = make_record()
    evil = '"><script>alert(1)</script>'
    record.set_scores(Progress(10, 1, 1000, {}), {f"evaluation/{evil}/{evil}": 1.0})
    record.add_metrics(Progress(10, 1, 1000, {}), {evil: 1.0, "broken": float("nan")})
    record.busy, record.checkpoint, record.status = evil, evil, evil
    page = render(record)
    assert "<script" not in page
    assert "<b>run" not in page
    assert html.escape(evil) in page
    assert "broken" not in page


def test_a_long_run_has_a_short_page() -> None:
    record = make_record()
    for step in range(5000):
        record.add_metrics(Progress(step, step, 5000, {}), {"student/loss": float(step)})
    curve = record.curves["student/loss"]
    assert len(curve) <= MOST_POINTS
    assert (curve[0], curve[-1]) == ((0, 0.0), (4999, 4999.0))
    assert [x for x, _ in curve] == sorted(x for x, _ in curve)
