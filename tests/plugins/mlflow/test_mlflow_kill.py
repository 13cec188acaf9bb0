"""Killed at any moment, a run is in MLflow as it is in its journal: nothing is lost, nothing is doubled."""

import math
from collections import Counter
from types import SimpleNamespace

import pytest
from mlflow_support import Client, Killed, Moments
from PIL import Image

from freeflow_core import tracking
from freeflow_core.interfaces.journal import Journal, Picture
from freeflow_core.tracking import Replay, send_unsent

CHECKPOINT, STEPS, STOPPED = 2, 6, 4
CHANGING = ("create_run", "update_run", "set_terminated", "set_tag", "log_batch", "log_image", "log_text")


@pytest.fixture
def clock(monkeypatch):
    """Every record has a time of its own."""
    times = (1.7e9 + tick / 1000 for tick in range(10**6))
    monkeypatch.setattr("freeflow_core.interfaces.journal.now", lambda: next(times))


@pytest.fixture
def server(monkeypatch, clock):
    """An MLflow, and the moments at which the process can be killed."""
    client, moments = Client(), Moments()
    for name in CHANGING:
        monkeypatch.setattr(client, name, moments.surround(getattr(client, name)))
    monkeypatch.setattr(tracking, "write_text", moments.surround(lambda path, text, **_: path.write_text(text)))
    monkeypatch.setattr("mlflow.MlflowClient", lambda tracking_uri: client)
    return SimpleNamespace(client=client, moments=moments)


def train(journal, tracker, steps, finish=False):
    """Log each step, with a value that is never finite; a picture now and then; send every other step."""
    replay = Replay(tracker, journal.run(), journal)
    (journal.folder / "trackers").mkdir(exist_ok=True)
    for step in steps:
        journal.add_metrics(step, {"loss": 1.0 / step, "odd": math.inf})
        if step % 3 == 0:
            picture = journal.folder / f"{step}.png"
            Image.new("RGB", (2, 2)).save(picture)
            journal.add_picture(step, "a/b", picture)
        if step % 2 == 0:
            replay.send()
    replay.send()
    if finish:
        replay.end("finished", 1.8e9)


def check(journal, client):
    (run,) = client.runs
    records = [record for record, _ in journal.metrics()]
    rows = Counter((m.key, m.step) for m in run.data.rows)
    assert rows == Counter((name, r.images) for r in records for name in r.values if name != "odd")
    losses = {(m.step, m.value) for m in run.data.rows if m.key == "loss"}
    assert losses == {(r.images, r.values["loss"]) for r in records}
    assert run.data.tags["nonfinite/odd"] == str(sum("odd" in r.values for r in records))
    assert len(run.data.pictures) == sum(isinstance(artifact, Picture) for artifact, _ in journal.artifacts())
    assert run.data.files == {"config.yaml": 1}


def moments_of(server, scenario):
    """How many there are, counted by going through them all."""
    server.moments.die_at = many = 10**6
    scenario()
    left, server.moments.die_at = server.moments.die_at, None
    return many - left


def test_killed_and_sent_afterwards(server, make_run, tracker, tmp_path):
    def run(name):
        train(make_run(name), tracker(), range(1, STEPS + 1), finish=True)

    count = moments_of(server, lambda: run("whole"))
    for moment in range(count):
        server.client.runs.clear()
        server.moments.die_at = moment
        with pytest.raises(Killed):
            run(f"run-{moment}")
        journal = Journal(tmp_path / "runs" / f"run-{moment}")
        send_unsent(tracker(), journal.folder)
        check(journal, server.client)
        assert server.client.runs[0].info.status in {"KILLED", "FINISHED"}
        assert send_unsent(tracker(), journal.folder) is None
    assert count > 20


@pytest.mark.parametrize("synced", [False, True])
def test_killed_and_resumed_from_a_checkpoint(server, make_run, tracker, synced):
    """The resumed run takes back what came after the checkpoint, and trains it again with other times."""

    def resume(journal):
        journal.cut(CHECKPOINT)
        train(journal, tracker(), range(CHECKPOINT + 1, STEPS + 1), finish=True)

    whole = make_run("whole")
    first = moments_of(server, lambda: train(whole, tracker(), range(1, STOPPED + 1)))
    second = moments_of(server, lambda: resume(whole))
    for moment in range(first + second):
        server.client.runs.clear()
        journal = make_run(f"run-{moment}")
        server.moments.die_at = moment
        try:
            train(journal, tracker(), range(1, STOPPED + 1))
        except Killed:
            if synced and server.client.runs:
                send_unsent(tracker(), journal.folder)
        if not any(record.images >= CHECKPOINT for record, _ in journal.metrics()):
            continue  # killed before the checkpoint
        try:
            resume(journal)
        except Killed:
            resume(journal)
        server.moments.die_at = None
        check(journal, server.client)
        assert server.client.runs[0].info.status == "FINISHED"
    assert min(first, second) > 10
