"""What arrives in MLflow when it is there."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from freeflow_mlflow.unsent import send_unsent


def test_parameters_metrics_and_status_arrive(client, make_run, make_tracker) -> None:
    tracker = make_tracker(tags={"team": "a"}, run_name="shown")
    tracker.start(make_run(config={"training": {"batch_size": 64}, "few": [2, 4], "long": "x" * 9000}), {})
    for step in range(30):
        tracker.log_metrics({"loss": 1.0 / (step + 1), "lr/student": 0.5}, step * 64)
    tracker.finish("finished")
    run = client.get_run(tracker.state()["run_id"])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "shown"
    assert run.data.tags["team"] == "a"
    assert run.data.params["training.batch_size"] == "64"
    assert run.data.params["few"] == "[2, 4]"
    assert len(run.data.params["long"]) == 6000
    assert run.data.params["long"].endswith("[cut: 9000 characters; config.yaml has them all]")
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)] == [
        (step * 64, 1.0 / (step + 1)) for step in range(30)
    ]
    assert all(run.info.start_time <= m.timestamp <= run.info.end_time for m in history)
    assert len(client.get_metric_history(run.info.run_id, "lr/student")) == 30


def test_more_than_one_request_of_metrics_arrives_whole(client, make_run, make_tracker) -> None:
    tracker = make_tracker(flush_seconds=600, buffer_metrics=100_000)
    tracker.start(make_run(), {})
    run_id = tracker.state()["run_id"]
    for step in range(2100):
        tracker.log_metrics({"loss": float(step)}, step)
    assert not client.get_metric_history(run_id, "loss")  # gathered, not sent one by one
    tracker.finish("finished")
    assert sorted(m.value for m in client.get_metric_history(run_id, "loss")) == [float(step) for step in range(2100)]


def test_pictures_show_their_step_and_files_their_folder(client, make_run, make_tracker) -> None:
    tracker, run = make_tracker(), make_run()
    (run.folder / "table.txt").write_text("a table")
    (run.folder / "checkpoint").mkdir()
    (run.folder / "checkpoint" / "weights").write_text("w")
    tracker.start(run, {})
    picture = torch.randint(0, 256, (3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tracker.log_images("samples/student", picture, 640)
    tracker.log_images("grey", torch.zeros(1, 8, 8, dtype=torch.uint8), 1280)
    expected = picture.permute(1, 2, 0).numpy().copy()
    picture.zero_()  # the caller may reuse its memory at once
    tracker.log_file(run.folder / "table.txt", "tables")
    tracker.log_file(run.folder / "checkpoint")
    tracker.finish("finished")
    run_id = tracker.state()["run_id"]
    images = [item.path for item in client.list_artifacts(run_id, "images")]
    assert any(path.startswith("images/samples~student+step+640+") and path.endswith(".png") for path in images)
    assert any(path.startswith("images/grey+step+1280+") for path in images)
    from PIL import Image

    png = next(path for path in images if "student" in path and path.endswith(".png"))
    with Image.open(client.download_artifacts(run_id, png)) as stored:
        assert (torch.tensor(list(stored.tobytes())) == torch.tensor(expected.flatten().tolist())).all()
    assert Path(client.download_artifacts(run_id, "tables/table.txt")).read_text() == "a table"
    assert Path(client.download_artifacts(run_id, "checkpoint/weights")).read_text() == "w"
    assert Path(client.download_artifacts(run_id, "config.yaml")).read_text() == "name: first\n"


def test_files_stay_out_when_not_wanted(client, make_run, make_tracker) -> None:
    tracker, run = make_tracker(log_artifacts=False), make_run()
    (run.folder / "big").write_text("")
    tracker.start(run, {})
    tracker.log_file(run.folder / "big")
    tracker.finish("finished")
    assert [item.path for item in client.list_artifacts(tracker.state()["run_id"])] == ["config.yaml"]


def test_a_file_that_is_gone_holds_up_nothing(client, make_run, make_tracker, caplog) -> None:
    tracker, run = make_tracker(), make_run()
    (run.folder / "kept").write_text("")
    tracker.start(run, {})
    tracker.log_file(run.folder / "gone")
    tracker.log_file(run.folder / "kept")
    tracker.finish("finished")
    assert "kept" in {item.path for item in client.list_artifacts(tracker.state()["run_id"])}
    assert "gone no longer exists" in caplog.text
    assert not (run.folder / "mlflow-unsent").exists()


def test_nonfinite_values_are_counted_instead_of_sent(client, make_run, make_tracker) -> None:
    tracker = make_tracker()
    tracker.start(make_run(), {})
    for value in (1.0, math.nan, math.inf, -math.inf):
        tracker.log_metrics({"loss": value}, 64)
    tracker.finish("failed")
    run = client.get_run(tracker.state()["run_id"])
    assert [m.value for m in client.get_metric_history(run.info.run_id, "loss")] == [1.0]
    assert run.data.tags["nonfinite/loss"] == "3"
    assert run.info.status == "FAILED"


@pytest.mark.parametrize("status", ["stopped", "interrupted"])
def test_resuming_goes_on_in_the_same_run(client, make_run, make_tracker, status) -> None:
    first = make_tracker()
    first.start(make_run(config={"training": {"images": 1280, "batch_size": 64}}), {})
    first.log_metrics({"loss": 2.0, "odd": math.nan}, 64)
    state = first.state()
    first.finish(status)
    assert client.get_run(state["run_id"]).info.status == "KILLED"

    second = make_tracker()
    second.start(make_run(config={"training": {"images": 2560, "batch_size": 64}, "new": 1}, resumed=True), state)
    assert second.state() == state
    assert client.get_run(state["run_id"]).info.status == "RUNNING"
    second.log_metrics({"loss": 1.0, "odd": math.nan}, 128)
    second.finish("finished")
    run = client.get_run(state["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params == {"training.images": "1280", "training.batch_size": "64", "new": "1"}
    assert run.data.tags["freeflow.changed_on_resume"] == "training.images=2560"
    assert run.data.tags["nonfinite/odd"] == "2"
    assert [m.step for m in client.get_metric_history(state["run_id"], "loss")] == [64, 128]
    assert len(_runs(client, state)) == 1


@pytest.mark.parametrize("lost", ["deleted", "unknown"])
def test_resuming_a_lost_run_starts_a_new_one_that_names_it(client, make_run, make_tracker, lost) -> None:
    first = make_tracker()
    first.start(make_run(), {})
    state = first.state()
    first.finish("stopped")
    if lost == "deleted":
        client.delete_run(state["run_id"])
    else:
        state |= {"run_id": "0" * 32, "key": "another"}
    second = make_tracker()
    second.start(make_run(resumed=True), state)
    second.log_metrics({"loss": 1.0}, 64)
    second.finish("finished")
    run = client.get_run(second.state()["run_id"])
    assert run.info.run_id != state["run_id"]
    assert run.data.tags["freeflow.previous_run"] == state["run_id"]
    assert run.data.params["training.batch_size"] == "64"
    assert run.data.metrics == {"loss": 1.0}


def test_a_run_made_without_our_knowing_is_found_by_its_key(client, make_run, make_tracker) -> None:
    first = make_tracker()
    first.start(make_run(), {})
    state = first.state()
    first.finish("interrupted")
    second = make_tracker()
    second.start(make_run(resumed=True), {**state, "run_id": None})
    assert second.state()["run_id"] == state["run_id"]


def test_the_state_of_another_tracker_is_harmless(client, make_run, make_tracker) -> None:
    tracker = make_tracker()
    tracker.start(make_run(), {"run_id": 7, "key": ["x"]})
    assert client.get_run(tracker.state()["run_id"]).info.status == "RUNNING"


def test_two_trackers_at_once_do_not_mix(client, make_run, make_tracker) -> None:
    one, two = make_tracker(experiment="one"), make_tracker(experiment="two")
    one.start(make_run("a"), {})
    two.start(make_run("b"), {})
    for step in range(20):
        one.log_metrics({"loss": 1.0}, step)
        two.log_metrics({"loss": 2.0}, step)
    one.finish("finished")
    two.finish("failed")
    for tracker, name, value, status in ((one, "a", 1.0, "FINISHED"), (two, "b", 2.0, "FAILED")):
        run = client.get_run(tracker.state()["run_id"])
        assert (run.info.run_name, run.info.status) == (name, status)
        assert [m.value for m in client.get_metric_history(run.info.run_id, "loss")] == [value] * 20
    assert one.state()["experiment_id"] != two.state()["experiment_id"]
    import mlflow

    assert mlflow.active_run() is None


def test_nothing_is_printed_or_logged_by_mlflow(make_run, make_tracker, capfd, caplog) -> None:
    caplog.set_level("INFO")
    tracker = make_tracker()
    tracker.start(make_run(), {})
    tracker.finish("finished")
    assert capfd.readouterr() == ("", "")
    assert {record.name for record in caplog.records} == {"freeflow"}
    assert "mlflow ui --backend-store-uri sqlite:///" in caplog.text


def test_after_the_end_everything_is_ignored(client, make_run, make_tracker) -> None:
    tracker = make_tracker()
    tracker.start(make_run(), {})
    tracker.finish("finished")
    tracker.log_metrics({"late": 1.0}, 1)
    tracker.finish("failed")
    run = client.get_run(tracker.state()["run_id"])
    assert (run.info.status, run.data.metrics) == ("FINISHED", {})


@pytest.mark.parametrize(("asked", "expected"), [(False, ("true", "true")), (True, (None, None))])
def test_telemetry_is_off_unless_asked_for(make_run, make_tracker, dead_uri, asked, expected) -> None:
    make_tracker(telemetry=asked, uri=dead_uri).start(make_run(), {})
    assert (os.environ.get("MLFLOW_DISABLE_TELEMETRY"), os.environ.get("DO_NOT_TRACK")) == expected


def test_the_users_timeouts_win(make_run, make_tracker, dead_uri, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    make_tracker(uri=dead_uri, retries=0).start(make_run(), {})
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "3"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"


def test_a_process_that_ends_without_finish_loses_nothing(client, store_uri, tmp_path) -> None:
    script = f"""
import sys
sys.modules["mlflow"] = None  # not installed, or broken: saves its import here, and must not matter
from pathlib import Path
from freeflow_core.types import RunInfo
from freeflow_mlflow.config import MlflowConfig
from freeflow_mlflow.tracker import MlflowTracker
tracker = MlflowTracker(MlflowConfig(uri={store_uri!r}))
tracker.start(RunInfo("exit", "distill", Path({str(tmp_path)!r}), {{}}, ""), {{}})
tracker.log_metrics({{"loss": 1.5}}, 64)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("mlflow-sync") == 1
    run = client.get_run(send_unsent(tmp_path).runs[0])
    assert (run.info.status, run.data.metrics) == ("KILLED", {"loss": 1.5})


def _runs(client, state):
    return client.search_runs([state["experiment_id"]], filter_string=f"tags.`freeflow.key` = '{state['key']}'")
