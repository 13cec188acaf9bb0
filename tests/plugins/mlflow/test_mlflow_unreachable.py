"""A server that is dead, hangs, or comes back."""

from __future__ import annotations

import itertools
import json
import math
import threading
import time
from pathlib import Path

import pytest
import torch
import typer
from freeflow_mlflow.link import RunLink
from freeflow_mlflow.plugin import freeflow_commands
from freeflow_mlflow.spool import Spool
from freeflow_mlflow.unsent import SentReport, send_unsent
from typer.testing import CliRunner

from freeflow_core.errors import ConfigError, FreeflowError


def _train(tracker, run, steps: int = 50) -> float:
    """Seconds that the calls of a training loop took."""
    (run.folder / "table.txt").write_text("a table")
    began = time.perf_counter()
    for step in range(steps):
        tracker.log_metrics({"loss": float(step), "odd": math.inf}, step * 64)
    tracker.log_images("samples", torch.full((3, 8, 8), 7, dtype=torch.uint8), 640)
    tracker.log_file(run.folder / "table.txt", "tables")
    return time.perf_counter() - began


def _check_complete(client, run_id: str, steps: int = 50) -> None:
    history = client.get_metric_history(run_id, "loss")
    assert sorted((m.step, m.value) for m in history) == [(step * 64, float(step)) for step in range(steps)]
    run = client.get_run(run_id)
    assert run.data.tags["nonfinite/odd"] == str(steps)
    assert run.data.params["training.batch_size"] == "64"
    pictures = [item.path for item in client.list_artifacts(run_id, "images") if item.path.endswith(".png")]
    assert len(pictures) == 1
    assert "samples+step+640" in pictures[0]
    assert Path(client.download_artifacts(run_id, "tables/table.txt")).read_text() == "a table"
    assert Path(client.download_artifacts(run_id, "config.yaml")).read_text() == "name: first\n"


def test_a_dead_server_costs_nothing_and_loses_nothing(
    client, store_uri, dead_uri, make_run, make_tracker, caplog
) -> None:
    tracker, run = make_tracker(uri=dead_uri), make_run()
    began = time.perf_counter()
    tracker.start(run, {})
    assert time.perf_counter() - began < 2
    assert _train(tracker, run) < 0.5
    state = tracker.state()
    assert (state["run_id"], state["uri"]) == (None, dead_uri)
    tracker.finish("finished")
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert f"freeflow mlflow-sync {run.folder}" in warnings[0]

    (spool,) = Spool.all_of(run.folder)
    assert len((spool.folder / "metrics.jsonl").read_text().splitlines()) == 50
    with pytest.raises(FreeflowError, match="still kept"):
        send_unsent(run.folder)
    assert spool.count() == (50, 2)

    report = send_unsent(run.folder, store_uri)
    assert (report.metrics, report.artifacts, report.skipped) == (50, 2, ())
    assert not (run.folder / "mlflow-unsent").exists()
    _check_complete(client, report.runs[0])
    sent = client.get_run(report.runs[0])
    assert (sent.info.status, sent.info.run_name) == ("FINISHED", "first")
    assert send_unsent(run.folder, store_uri) == SentReport()


def test_a_server_that_comes_back_gets_everything_during_the_run(client, make_run, make_tracker, monkeypatch) -> None:
    attempts: list[float] = []
    up = threading.Event()
    really_open = RunLink.open

    def flaky(uri, head):
        attempts.append(time.monotonic())
        if not up.is_set():
            raise ConnectionError("no route")
        return really_open(uri, head)

    monkeypatch.setattr(RunLink, "open", flaky)
    tracker, run = make_tracker(), make_run()
    tracker.start(run, {})
    _train(tracker, run, steps=25)
    _wait_until(lambda: len(attempts) >= 2)
    assert Spool.all_of(run.folder)[0].count()[0] == 25
    up.set()
    _wait_until(lambda: not (run.folder / "mlflow-unsent").exists())
    for step in range(25, 50):
        tracker.log_metrics({"loss": float(step), "odd": math.nan}, step * 64)
    tracker.finish("finished")
    _check_complete(client, tracker.state()["run_id"])
    assert min(b - a for a, b in itertools.pairwise(attempts)) >= 6 * 0.05


def test_a_connection_lost_within_a_request_neither_loses_nor_doubles(
    client, make_run, make_tracker, monkeypatch
) -> None:
    really_send, calls = RunLink.send_metrics, []

    def send_then_fail(self, records):
        really_send(self, records)
        calls.append(len(records))
        if len(calls) == 1:
            raise TimeoutError("the answer was lost")

    monkeypatch.setattr(RunLink, "send_metrics", send_then_fail)
    tracker, run = make_tracker(), make_run()
    tracker.start(run, {})
    _train(tracker, run)
    _wait_until(lambda: len(calls) >= 2)
    tracker.finish("finished")
    _check_complete(client, tracker.state()["run_id"])
    assert not (run.folder / "mlflow-unsent").exists()


def test_a_failing_artifact_store_holds_up_no_metric(client, make_run, make_tracker, monkeypatch) -> None:
    def fail(self, *arguments):
        raise PermissionError("read-only")

    with monkeypatch.context() as broken:
        broken.setattr(RunLink, "send_config", fail)
        broken.setattr(RunLink, "send_artifact", fail)
        tracker, run = make_tracker(), make_run()
        tracker.start(run, {})
        _train(tracker, run)
        tracker.finish("finished")
    run_id = tracker.state()["run_id"]
    assert len(client.get_metric_history(run_id, "loss")) == 50
    report = send_unsent(run.folder)
    assert (report.runs, report.metrics, report.artifacts) == ((run_id,), 0, 2)
    _check_complete(client, run_id)


def test_a_server_that_hangs_delays_the_end_by_a_bound_only(
    client, store_uri, make_run, make_tracker, monkeypatch
) -> None:
    release, really_open = threading.Event(), RunLink.open

    def hang(uri, head):
        release.wait(60)
        raise TimeoutError

    monkeypatch.setattr(RunLink, "open", hang)
    tracker, run = make_tracker(finish_seconds=0.3), make_run()
    tracker.start(run, {})
    assert _train(tracker, run) < 0.5
    began = time.perf_counter()
    tracker.finish("interrupted")
    assert time.perf_counter() - began < 2
    assert Spool.all_of(run.folder)[0].count() == (50, 2)
    release.set()
    monkeypatch.setattr(RunLink, "open", really_open)
    report = send_unsent(run.folder)
    _check_complete(client, report.runs[0])
    assert client.get_run(report.runs[0]).info.status == "KILLED"


def test_resuming_sends_what_the_first_process_kept(client, store_uri, dead_uri, make_run, make_tracker) -> None:
    first, run = make_tracker(uri=dead_uri), make_run()
    first.start(run, {})
    _train(first, run, steps=25)
    state = first.state()
    first.finish("stopped")
    second = make_tracker()
    second.start(make_run(resumed=True), state)
    for step in range(25, 50):
        second.log_metrics({"loss": float(step), "odd": math.nan}, step * 64)
    second.finish("finished")
    _check_complete(client, second.state()["run_id"])
    assert not (run.folder / "mlflow-unsent").exists()


def test_a_killed_process_leaves_a_run_that_can_be_sent(client, store_uri, dead_uri, make_run, make_tracker) -> None:
    tracker, run = make_tracker(uri=dead_uri), make_run()
    tracker.start(run, {})
    _train(tracker, run)
    _wait_until(lambda: bool(Spool.all_of(run.folder)) and Spool.all_of(run.folder)[0].count() == (50, 2))
    with pytest.raises(ConfigError, match="still going on"):
        send_unsent(run.folder, store_uri)
    tracker.finish("finished")
    (spool,) = Spool.all_of(run.folder)
    head = json.loads((spool.folder / "run.json").read_text())
    head |= {"status": "RUNNING", "end_time": None, "process": head["process"] | {"created": 1.0}}
    (spool.folder / "run.json").write_text(json.dumps(head))
    with (spool.folder / "metrics.jsonl").open("a") as file:
        file.write('{"name": "lo')  # killed while writing
    report = send_unsent(run.folder, store_uri)
    assert client.get_run(report.runs[0]).info.status == "KILLED"
    _check_complete(client, report.runs[0])


def test_credentials_are_never_written(make_run, make_tracker, dead_uri) -> None:
    uri = dead_uri.replace("://", "://user:secret@")
    tracker, run = make_tracker(uri=uri), make_run(config={"trackers": [{"name": "mlflow", "uri": uri}]})
    tracker.start(run, {})
    tracker.finish("finished")
    assert "secret" not in json.dumps(tracker.state())
    kept = [path for path in run.folder.rglob("*") if path.is_file()]
    assert kept
    assert not any("secret" in path.read_text() for path in kept)
    with pytest.raises(ConfigError, match="--uri"):
        send_unsent(run.folder)


def test_the_command_sends_and_says_what(client, store_uri, dead_uri, make_run, make_tracker) -> None:
    tracker, run = make_tracker(uri=dead_uri), make_run()
    tracker.start(run, {})
    _train(tracker, run)
    (run.folder / "table.txt").unlink()
    tracker.finish("finished")
    app = typer.Typer()
    app.command("other")(lambda: None)
    freeflow_commands(app)
    result = CliRunner().invoke(app, ["mlflow-sync", str(run.folder), "--uri", store_uri])
    assert result.exit_code == 0, result.output
    assert "Sent 50 metric values and 1 images and files" in result.output
    assert "table.txt no longer exists" in result.output
    result = CliRunner().invoke(app, ["mlflow-sync", str(run.folder), "--uri", store_uri])
    assert "Nothing is waiting" in result.output


def test_a_folder_that_does_not_exist_is_a_usage_error(tmp_path) -> None:
    with pytest.raises(ConfigError, match="not a folder"):
        send_unsent(tmp_path / "missing")


def _wait_until(condition, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)
