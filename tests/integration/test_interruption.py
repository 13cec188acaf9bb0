"""Signals: what they end, what they do not, and how several processes agree on them."""

import json
import shutil
import signal

import pytest
import torch
from run_helpers import records
from test_resume import assert_identical

from freeflow_core import api
from freeflow_core.engine import checkpoint, interruption
from freeflow_core.engine.interruption import Agreement, StopRequest
from freeflow_core.errors import Interrupted
from freeflow_core.plugin import Manager, hookimpl

EVALUATED = (
    "evaluation.enabled=true", "evaluation.evaluators=[energy-distance]", "evaluation.num_samples=64",
    "evaluation.batch_size=32", "evaluation.reference_steps=4", "evaluation.cache=false",
)  # fmt: skip


class Sends:
    """SIGTERM, once: in the middle of an evaluation, or as a checkpoint has been written."""

    def __init__(self, moment):
        self.moment = moment

    @hookimpl
    def freeflow_evaluation_advanced(self, run, row, done, total):
        self.send("evaluation")

    @hookimpl
    def freeflow_checkpoint_saved(self, run, progress, path):
        self.send("checkpoint")

    def send(self, moment):
        if moment == self.moment:
            self.moment = None
            signal.raise_signal(signal.SIGTERM)


def status(folder):
    return json.loads((folder / "run.json").read_text())["status"]


LOOKS = ("evaluation.every_images=64", "samples.every_images=32", "checkpointing.every_images=64")


@pytest.fixture(scope="module")
def watched_run(tiny, tmp_path_factory, manager):
    """A run in one piece that is looked at on the way."""
    return api.distill(tiny(*EVALUATED, *LOOKS), output=tmp_path_factory.mktemp("whole") / "run", manager=manager)


@pytest.mark.parametrize("moment", ["evaluation", "checkpoint"])
def test_a_signal_ends_a_look_and_the_rest_follows(tiny, tmp_path, manager, watched_run, moment):
    watched = Manager.load()
    watched.register(Sends(moment), "sends")
    config = tiny(*EVALUATED, *LOOKS)
    with pytest.raises(Interrupted, match="--resume"):
        api.distill(config, output=tmp_path / "run", manager=watched)
    assert status(tmp_path / "run") == "interrupted"
    resumed = api.distill(config, output=tmp_path / "run", resume=True, manager=manager)
    assert (resumed.status, status(tmp_path / "run")) == ("finished", "finished")
    assert_identical(watched_run.folder, resumed.folder)
    assert records(watched_run.folder) == records(resumed.folder)


def test_scores_that_are_there_are_replaced_and_not_doubled(tiny, tmp_path, manager, watched_run):
    """As after a kill between the last scores and the end."""
    shutil.copytree(watched_run.folder, tmp_path / "run")
    resumed = api.distill(tiny(*EVALUATED, *LOOKS), output=tmp_path / "run", resume=True, manager=manager)
    assert "student" in resumed.scores
    assert records(watched_run.folder) == records(resumed.folder)


def test_a_run_without_a_checkpoint_tells_everything_anew(tiny, tmp_path, manager, watched_run):
    """As after a kill between the first look and the first checkpoint."""
    shutil.copytree(watched_run.folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    resumed = api.distill(tiny(*EVALUATED, *LOOKS), output=tmp_path / "run", resume=True, manager=manager)
    assert records(watched_run.folder) == records(resumed.folder)


def test_a_signal_ends_the_last_evaluation(tiny, tmp_path, manager):
    watched = Manager.load()
    watched.register(Sends("evaluation"), "sends")
    with pytest.raises(Interrupted, match="--resume"):
        api.distill(tiny(*EVALUATED), output=tmp_path / "run", manager=watched)
    assert status(tmp_path / "run") == "interrupted"
    resumed = api.distill(tiny(*EVALUATED), output=tmp_path / "run", resume=True, manager=manager)
    assert "student" in resumed.scores


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGHUP", "SIGINT"])
def test_no_signal_ends_a_checkpoint_that_is_being_written(tiny, tmp_path, manager, monkeypatch, name):
    number, real = getattr(signal, name), checkpoint.save_tensors

    def interrupted(path, tensors):
        signal.raise_signal(number)
        real(path, tensors)

    monkeypatch.setattr(checkpoint, "save_tensors", interrupted)
    monkeypatch.setattr(interruption, "_SECOND", 0.0)
    before = signal.signal(number, signal.SIG_DFL)  # under nohup SIGHUP is ignored, and stays so
    try:
        with pytest.raises(Interrupted):
            api.distill(tiny("checkpointing.every_images=48"), output=tmp_path / "run", manager=manager)
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
    found = checkpoint.Checkpoints(tmp_path / "run" / "checkpoints", 2).all()
    assert [path.name for path in found] == ["images-000000000048", "images-000000000064"]
    assert all(checkpoint.damage(path) is None for path in found)


def test_what_was_ignored_stays_ignored(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.requested
            signal.raise_signal(signal.SIGTERM)
            assert stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("patient", [False, True])
def test_only_a_second_ctrl_c_ends_a_step(patient, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(interruption.time, "monotonic", lambda: float(next(clock)))
    with StopRequest(patient=patient) as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        if patient:
            signal.raise_signal(signal.SIGINT)
        else:
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert stop.requested


class Others:
    """Stands for the other processes of a run: each step takes ``seconds``, and one is asked to stop ``at`` a time."""

    num_processes, is_main_process = 2, True

    def __init__(self, monkeypatch, seconds, at):
        self.now, self.seconds, self.at, self.questions = 0.0, seconds, at, 0
        monkeypatch.setattr(interruption.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(torch.distributed, "all_reduce", self.reduce)

    def reduce(self, told, operation, group):
        self.questions += 1
        torch.maximum(told, torch.tensor([float(self.now >= self.at), 0.0]), out=told)


@pytest.mark.parametrize(("seconds", "bound"), [(0.001, 2.0), (0.3, 2.0), (5.0, 5.0)])
def test_processes_agree_within_two_seconds_or_a_step(monkeypatch, seconds, bound):
    others = Others(monkeypatch, seconds, at=20.0)
    agreement, steps = Agreement("gloo"), 0
    while not agreement.reached(False):
        steps += 1
        others.now += seconds
    assert others.at <= others.now <= others.at + bound
    assert others.questions <= 20 + min(steps + 1, 3 * 20 / 0.5)
