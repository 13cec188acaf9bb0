"""What a tracker promises."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import torch

from freeflow_core.engine.describe import describe
from freeflow_core.interfaces import Tracker
from freeflow_core.testing.contracts.base import ComponentContract
from freeflow_core.types import RunInfo

_ODD = {"student/loss": 1.0, "weird name: 100 %, (ä)": 2.0, "a" * 300: 3.0}


class TrackerContract(ComponentContract):
    """Checks of a tracker, in a temporary folder."""

    kind: ClassVar[str] = "tracker"

    def test_a_whole_run(self) -> None:
        """start, metrics, a picture, a file, state, finish: in this order, without an error."""
        with _run_folder() as run:
            tracker = self.tracker()
            tracker.start(run, {})
            for images in (64, 128):
                tracker.log_metrics({"student/loss": 1.0 / images}, images)
            tracker.log_images("samples/grid", torch.zeros(3, 8, 8, dtype=torch.uint8), 128)
            note = run.folder / "note.txt"
            note.write_text("kept", "utf-8")
            tracker.log_file(note)
            tracker.log_file(note, "notes")
            tracker.finish("finished")

    def test_state_is_plain_json(self) -> None:
        """``state`` travels in checkpoints."""
        with _run_folder() as run:
            tracker = self.tracker()
            tracker.start(run, {})
            state = tracker.state()
            tracker.finish("stopped")
        self.expect(isinstance(state, dict), "a dict from state()", describe(state))
        try:
            same = json.loads(json.dumps(state)) == state
        except TypeError as error:
            self.fail("JSON values from state()", str(error))
        self.expect(same, "a state that JSON gives back as it was", repr(state))

    def test_goes_on_after_a_restart(self) -> None:
        """A new tracker started with the state of the old one logs to the same place, without an error."""
        with _run_folder() as run:
            first = self.tracker()
            first.start(run, {})
            first.log_metrics({"student/loss": 1.0}, 64)
            state = json.loads(json.dumps(first.state()))
            first.finish("interrupted")
            second = self.tracker()
            second.start(_resumed(run), state)
            second.log_metrics({"student/loss": 0.5}, 128)
            again = second.state()
            second.finish("finished")
        self.expect(again == state, f"the state {state!r} after a restart: the same place", repr(again))

    def test_odd_values_stop_no_run(self) -> None:
        """Odd names, NaN and infinity, grey pictures, a missing file: at most a warning."""
        with _run_folder() as run:
            tracker = self.tracker()
            tracker.start(run, {})
            for call, arguments in (
                ("log_metrics", (_ODD, 1)),
                ("log_metrics", ({"nan": float("nan"), "infinite": float("inf")}, 2)),
                ("log_metrics", ({}, 3)),
                ("log_images", ("a picture, of grey", torch.zeros(1, 8, 8, dtype=torch.uint8), 3)),
                ("log_file", (run.folder / "no such file.txt",)),
            ):
                try:
                    getattr(tracker, call)(*arguments)
                except Exception as error:
                    self.fail(f"{call}{_short(arguments)} without an error", f"{type(error).__name__}: {error}")
            tracker.finish("failed")

    def test_finish_without_a_start(self) -> None:
        """``finish`` is always called, even where ``start`` failed."""
        try:
            self.tracker().finish("failed")
        except Exception as error:
            self.fail("finish('failed') without start() to do nothing", f"{type(error).__name__}: {error}")

    def tracker(self) -> Tracker:
        """The tracker."""
        built: Tracker = self.build()
        return built


@contextmanager
def _run_folder() -> Iterator[RunInfo]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name) / "runs" / "contract"
        folder.mkdir(parents=True)
        text = "name: contract\n"
        (folder / "config.yaml").write_text(text, "utf-8")
        yield RunInfo("contract", "distill", folder, {"name": "contract", "training": {"images": 128}}, text)


def _resumed(run: RunInfo) -> RunInfo:
    return RunInfo(run.name, run.command, run.folder, run.config, run.config_yaml, resumed=True)


def _short(arguments: tuple[object, ...]) -> str:
    text = str(arguments)
    return text if len(text) < 80 else f"{text[:76]}...)"
