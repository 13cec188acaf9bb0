"""A server that is dead, hangs, or comes back."""

import threading
import time

import pytest
import typer
from freeflow_mlflow.plugin import freeflow_commands
from freeflow_mlflow.tracker import MlflowTracker
from mlflow_support import check_complete, record
from typer.testing import CliRunner

from freeflow_core.errors import ConfigError, FreeflowError
from freeflow_core.tracking import FOLDER, send_unsent


def sync(*arguments):
    """``freeflow mlflow-sync``; what it raises passes."""
    app = typer.Typer()
    app.command("other")(lambda: None)
    freeflow_commands(app)
    result = CliRunner().invoke(app, ["mlflow-sync", *map(str, arguments)])
    if isinstance(result.exception, FreeflowError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def wait_until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def the_run(client, journal):
    (run,) = client.search_runs(["1"], f"tags.`freeflow.key` = '{journal.status()['key']}'")
    return run


def test_a_dead_server_costs_nothing_and_one_command_sends_all(client, store_uri, dead_uri, make_run, start, caplog):
    journal = make_run()
    began = time.perf_counter()
    sender = start(journal, uri=dead_uri)
    record(journal, sender=sender)
    assert time.perf_counter() - began < 2
    sender.finish("finished")
    journal.write_status(status="finished", ended=1.75e9)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"freeflow mlflow-sync {journal.folder}" in warning
    with pytest.raises(FreeflowError, match="whole in"):
        sync(journal.folder)
    with pytest.raises(ConfigError):
        sync(journal.folder / "missing")
    assert "Sent 50 metric values and 3 images" in sync(journal.folder, "--uri", store_uri)
    assert "Nothing is waiting" in sync(journal.folder, "--uri", store_uri)
    run = the_run(client, journal)
    assert (run.info.status, run.info.end_time) == ("FINISHED", 1.75e12)
    check_complete(client, run.info.run_id)


def test_a_server_that_comes_back_gets_everything_during_the_run(client, make_run, start, monkeypatch):
    attempts = []
    up = threading.Event()
    really_open = MlflowTracker.open

    def flaky(self, *arguments):
        attempts.append(time.monotonic())
        if not up.is_set():
            raise ConnectionError("no route")
        return really_open(self, *arguments)

    monkeypatch.setattr(MlflowTracker, "open", flaky)
    journal = make_run()
    sender = start(journal)
    record(journal, range(25), sender)
    wait_until(lambda: len(attempts) >= 2)
    up.set()
    wait_until(lambda: client.search_runs(["1"], f"tags.`freeflow.key` = '{journal.status()['key']}'"))
    for step in range(25, 50):
        sender.recorded(journal.add_metrics(step * 64, {"loss": float(step), "odd": float("nan")}))
    sender.finish("finished")
    check_complete(client, the_run(client, journal).info.run_id)
    assert attempts[1] - attempts[0] >= 6 * 0.05


def test_a_failing_artifact_store_holds_up_no_metric(client, make_run, start, monkeypatch):
    journal = make_run()
    with monkeypatch.context() as broken:
        broken.setattr(MlflowTracker, "send_artifact", lambda self, artifact: 1 / 0)
        sender = start(journal)
        record(journal, sender=sender)
        sender.finish("finished")
    run_id = the_run(client, journal).info.run_id
    assert len(client.get_metric_history(run_id, "loss")) == 50
    assert "Sent 0 metric values and 3 images" in sync(journal.folder)
    check_complete(client, run_id)


def test_a_server_that_hangs_delays_the_end_by_a_bound_only(client, make_run, start, monkeypatch, tracker):
    release, really_open = threading.Event(), MlflowTracker.open
    monkeypatch.setattr(MlflowTracker, "open", lambda *_: release.wait(60) and 1 / 0)
    journal = make_run()
    sender = start(journal, finish_seconds=0.3)
    record(journal, sender=sender)
    began = time.perf_counter()
    sender.finish("interrupted")
    assert time.perf_counter() - began < 2
    with pytest.raises(ConfigError, match="still going on"):
        send_unsent(tracker(), journal.folder)
    release.set()
    monkeypatch.setattr(MlflowTracker, "open", really_open)
    wait_until(lambda: not sender._thread.is_alive())
    sync(journal.folder)
    run = the_run(client, journal)
    assert run.info.status == "KILLED"
    check_complete(client, run.info.run_id)


def test_a_run_that_had_no_tracker_can_be_sent_to_an_address(client, store_uri, make_run):
    journal = make_run()
    record(journal)
    assert "Nothing is waiting" in sync(journal.folder)
    assert "Sent 50 metric values" in sync(journal.folder, "--uri", store_uri)
    check_complete(client, the_run(client, journal).info.run_id)


def test_credentials_are_never_written(make_run, start, dead_uri):
    uri = dead_uri.replace("://", "://user:secret@")
    journal = make_run()
    start(journal, uri=uri).finish("finished")
    kept = list((journal.folder / FOLDER).glob("*.json"))
    assert len(kept) == 1
    assert "secret" not in kept[0].read_text()
    with pytest.raises(ConfigError, match="--uri"):
        sync(journal.folder)
