"""Observers: what they hear and in which order, however the run ends; and that they cannot change it."""

import signal

import pytest
import torch

from freeflow_core import api
from freeflow_core.engine.events import Events
from freeflow_core.engine.run import Run
from freeflow_core.errors import Interrupted, NonFiniteError
from freeflow_core.evaluation.scoring import Scoring
from freeflow_core.plugin import Manager, hookimpl
from freeflow_core.plugin.spec import Observers
from freeflow_core.types import Loss, Progress, RunInfo

LOOKS = (
    *("training.images=96", "checkpointing.every_images=48", "evaluation.enabled=true", "evaluation.every_images=48"),
    *("evaluation.num_samples=16", "evaluation.batch_size=8", "evaluation.reference_steps=2"),
    *("evaluation.evaluators=[fidelity]", "codec=states"),
)


class Ear:
    """Writes down every event, and what holds at that moment."""

    def __init__(self):
        self.heard: list[str] = []

    @hookimpl
    def freeflow_run_started(self, run):
        assert (run.folder / "config.yaml").is_file()
        self.heard.append("started")

    @hookimpl
    def freeflow_step_finished(self, run, progress, metrics):
        assert str(progress.images) in (run.folder / "metrics.jsonl").read_text("utf-8").splitlines()[-1]
        self.heard.append(f"step {progress.images}")

    @hookimpl
    def freeflow_checkpoint_saved(self, run, progress, path):
        assert (path / "state.json").is_file()
        self.heard.append(f"saved {progress.images}")

    @hookimpl
    def freeflow_evaluation_advanced(self, run, row, done, total):
        assert done <= total == 16
        if not self.heard[-1].startswith("evaluating"):
            self.heard.append("evaluating")

    @hookimpl
    def freeflow_evaluation_finished(self, run, progress, scores):
        assert all(name.startswith("evaluation/") for name in scores)
        self.heard.append(f"evaluated {progress.images}")

    @hookimpl
    def freeflow_run_finished(self, run, status):
        assert status in (run.folder / "run.json").read_text("utf-8")
        self.heard.append(status)


def watched(*observers):
    manager = Manager.load()
    for number, observer in enumerate(observers):
        manager.register(observer, f"observer-{number}")
    return manager


def test_the_ear_has_every_observer():
    assert {name for name in vars(Observers) if name.startswith("freeflow_")} == {
        name for name in vars(Ear) if name.startswith("freeflow_")
    }


def test_the_order_is_the_documented_one(tiny, output):
    ear = Ear()
    api.distill(tiny(*LOOKS), output=output, manager=watched(ear))
    first = ["step 32", "step 48", "saved 48", "evaluating", "evaluated 48"]
    second = ["step 64", "step 96", "saved 96", "evaluating", "evaluated 96"]
    assert ear.heard == ["started", *first, *second, "finished"]


def poison(run):
    healthy = run.components.objective.losses

    def losses(*arguments):
        return {name: Loss(loss.per_sample * float("nan"), {}) for name, loss in healthy(*arguments).items()}

    run.components.objective.losses = losses


class Interrupting:
    @hookimpl
    def freeflow_step_finished(self, progress):
        signal.raise_signal(signal.SIGINT)


def test_a_run_that_fails_is_finished_with_failed(tiny, output):
    ear = Ear()
    run = Run(tiny(), "distill", watched(ear), output=output, resume=False, scorer=Scoring)
    poison(run)
    with pytest.raises(NonFiniteError):
        run.execute()
    assert ear.heard == ["started", "failed"]


def test_an_interrupted_run_saves_and_is_finished_with_interrupted(tiny, output):
    ear = Ear()
    with pytest.raises(Interrupted):
        api.distill(tiny(), output=output, manager=watched(ear, Interrupting()))
    assert ear.heard == ["started", "step 32", "saved 32", "interrupted"]


def test_a_run_that_was_told_to_stop_is_finished_with_stopped(tiny, output):
    ear = Ear()
    api.distill(tiny("training.stop_at_images=32"), output=output, manager=watched(ear))
    assert ear.heard == ["started", "step 32", "saved 32", "stopped"]


class Meddles:
    """Tries everything that an observer can reach."""

    @hookimpl
    def freeflow_run_started(self, run):
        run.config["training"]["images"] = 1
        torch.manual_seed(99)
        torch.rand(7)

    @hookimpl
    def freeflow_step_finished(self, progress, metrics):
        progress.updates["student"] = 10**6
        torch.rand(3)
        metrics["student/loss"] = 0.0  # raises: a read-only copy

    @hookimpl
    def freeflow_run_finished(self):
        raise SystemExit(3)


def test_an_observer_cannot_change_training_or_its_record(tiny, tmp_path, manager, caplog):
    plain = api.distill(tiny(), output=tmp_path / "plain", manager=manager)
    other = api.distill(tiny(), output=tmp_path / "watched", manager=watched(Meddles()))
    assert other.status == "finished"
    for name in ("student.safetensors", "config.yaml"):
        assert (plain.folder / name).read_bytes() == (other.folder / name).read_bytes()
    assert caplog.text.count("freeflow_step_finished: TypeError") == 1
    assert caplog.text.count("freeflow_run_finished: SystemExit") == 1


def test_observers_run_on_the_main_process_only(tmp_path):
    ear = Ear()
    info = RunInfo("run", "distill", tmp_path, {}, "")
    events = Events(watched(ear), [], info, active=False)
    events.started()
    events.stepped(Progress(1, 1, 1, {}), {})
    events.advanced("student", 1, 1)
    events.evaluated(Progress(1, 1, 1, {}), {})
    events.saved(Progress(1, 1, 1, {}), tmp_path)
    events.finished("finished")
    assert ear.heard == []
