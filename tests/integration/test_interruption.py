"""Signals: what they end, what they do not, and how several processes agree on them."""

import json
import signal

import pytest
import torch
from test_resume import assert_identical

from freeflow_core import api
from freeflow_core.engine import checkpoint, process
from freeflow_core.engine.process import Agreement, StopRequest
from freeflow_core.errors import Interrupted
from freeflow_core.plugin import Manager, hookimpl

EVALUATED = (
    "evaluation.enabled=true", "evaluation.evaluators=[energy-distance]", "evaluation.num_samples=64",
    "evaluation.batch_size=32", "evaluation.reference_steps=4", "evaluation.cache=false",
)  # fmt: skip


class Sends:
    """A signal in the middle of an evaluation, once."""

    def __init__(self, number):
        self.number = number

    @hookimpl
    def freeflow_evaluation_advanced(self, run, row, done, total):
        if self.number is not None:
            number, self.number = self.number, None
            signal.raise_signal(number)


def status(folder):
    return json.loads((folder / "run.json").read_text())["status"]


@pytest.mark.parametrize("every", [None, 64], ids=["after training", "on the way"])
def test_a_signal_ends_an_evaluation_and_the_rest_follows(tiny, tmp_path, manager, every):
    watched = Manager.load()
    watched.register(Sends(signal.SIGTERM), "sends")
    config = tiny(*EVALUATED, f"evaluation.every_images={every or 'null'}")
    with pytest.raises(Interrupted, match="--resume"):
        api.distill(config, output=tmp_path / "run", manager=watched)
    assert status(tmp_path / "run") == "interrupted"
    resumed = api.distill(config, output=tmp_path / "run", resume=True, manager=manager)
    assert (resumed.status, status(tmp_path / "run")) == ("finished", "finished")
    assert "student" in resumed.scores
    assert_identical(api.distill(tiny(), output=tmp_path / "whole", manager=manager).folder, resumed.folder)


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGHUP", "SIGINT"])
def test_no_signal_ends_a_checkpoint_that_is_being_written(tiny, tmp_path, manager, monkeypatch, name):
    number, real = getattr(signal, name), checkpoint.save_tensors

    def interrupted(path, tensors):
        signal.raise_signal(number)
        real(path, tensors)

    monkeypatch.setattr(checkpoint, "save_tensors", interrupted)
    monkeypatch.setattr(process, "_SECOND", 0.0)
    with pytest.raises(Interrupted):
        api.distill(tiny("checkpointing.every_images=48"), output=tmp_path / "run", manager=manager)
    found = checkpoint.Checkpoints(tmp_path / "run" / "checkpoints", 2).all()
    assert [path.name for path in found] == ["images-000000000048", "images-000000000064"]
    assert all(checkpoint.damage(path) is None for path in found)
    assert signal.getsignal(number) not in (signal.SIG_IGN, None)


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
    monkeypatch.setattr(process.time, "monotonic", lambda: float(next(clock)))
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
        monkeypatch.setattr(process.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(torch.distributed, "new_group", lambda backend: backend)
        monkeypatch.setattr(torch.distributed, "all_reduce", self.reduce)

    def reduce(self, told, operation, group):
        self.questions += 1
        torch.maximum(told, torch.tensor([float(self.now >= self.at), 0.0]), out=told)


@pytest.mark.parametrize(("seconds", "bound"), [(0.001, 2.0), (0.3, 2.0), (5.0, 5.0)])
def test_processes_agree_within_two_seconds_or_a_step(monkeypatch, seconds, bound):
    others = Others(monkeypatch, seconds, at=20.0)
    agreement, steps = Agreement(others), 0
    while not agreement.reached(False):
        steps += 1
        others.now += seconds
    assert others.at <= others.now <= others.at + bound
    assert others.questions <= 20 + min(steps + 1, 3 * 20 / 0.5)
