"""What arrives in MLflow when it is there."""

import math
from pathlib import Path

import pytest
from freeflow_mlflow.config import MlflowConfig
from freeflow_mlflow.tracker import prepare_environment
from mlflow_support import check_complete, record
from PIL import Image

from freeflow_core.interfaces.journal import Journal


def test_parameters_status_and_more_than_one_request_of_metrics_arrive(client, make_run, send):
    journal = make_run(config={"training": {"batch_size": 64}, "few": [2, 4], "long": "x" * 9000})
    for step in range(600):
        journal.add_metrics(step * 64, {"loss": 1.0 / (step + 1), "lr/student": 0.5})
    run = client.get_run(send(journal, "finished", tags={"team": "a"}, run_name="shown"))
    assert (run.info.status, run.info.run_name, run.data.tags["team"]) == ("FINISHED", "shown", "a")
    assert (run.info.start_time, run.info.end_time) == (1.7e12, 1.8e12)
    assert run.data.params["training.batch_size"] == "64"
    assert run.data.params["few"] == "[2, 4]"
    assert len(run.data.params["long"]) == 6000
    history = client.get_metric_history(run.info.run_id, "loss")
    sent = [(m.step, m.value, m.timestamp) for m in sorted(history, key=lambda m: m.step)]
    assert sent == [(r.images, r.values["loss"], round(r.time * 1000)) for r, _ in journal.metrics()]
    assert len(client.get_metric_history(run.info.run_id, "lr/student")) == 600


def test_a_run_is_named_tagged_and_described_by_what_it_was(client, make_run, send):
    parts = {"teacher": {"name": "sit"}, "objective": {"name": "freeflow"}, "source": {"name": "prior"}, "seed": 3}
    journal = make_run(config=parts)
    journal.write_status(preset="mine")
    (journal.folder / "report.md").write_text(
        "# x\n\n## Scores\n\n| a |\n\n## Samples\n\n![s](s.png)\n\n## Configuration\n"
    )
    run = client.get_run(send(journal, "finished"))
    assert run.info.run_name == "sit freeflow seed 3"
    wanted = {"teacher": "sit", "objective": "freeflow", "source": "prior", "data_free": "true", "seed": "3"}
    wanted["preset"] = "mine"
    assert wanted.items() <= run.data.tags.items()
    assert run.data.tags["freeflow.version"]
    assert run.data.tags["mlflow.user"]
    assert run.data.tags["mlflow.note.content"] == "# x\n\n## Scores\n\n| a |\n"


def test_what_training_does_not_change_has_no_chart(client, make_run, send):
    journal = make_run()
    for images in (64, 128):
        rows = ("student", "teacher", "teacher_1_step", "teacher_floor", "data")
        journal.add_metrics(images, {f"evaluation/{row}/fd": 1.0 for row in rows})
        journal.add_metrics(images, {"evaluation/teacher_1_step/single_step_distance": 0.5, "system/cpu": 10.0})
        journal.add_metrics(images, {"evaluation/student_4_steps/evaluations": 4})
    metrics = client.get_run(send(journal)).data.metrics
    assert metrics.keys() == {
        "evaluation/student/fd", "evaluation/teacher_1_step/single_step_distance", "system/cpu",
    }  # fmt: skip


def test_pictures_keep_their_pixels_and_their_step(client, make_run, send):
    journal = make_run()
    picture = Image.frombytes("RGB", (24, 16), bytes(range(256)) * 4 + bytes(128))
    grey = Image.new("L", (8, 8), 9)
    for name, image in (("samples/student", picture), ("grey", grey)):
        path = journal.folder / f"{image.mode}.png"
        image.save(path)
        journal.add_picture(640, name, path)
    run_id = send(journal)
    images = {item.path for item in client.list_artifacts(run_id, "images") if item.path.endswith(".png")}
    assert {path.split("+timestamp")[0] for path in images} == {
        "images/samples~student+step+640",
        "images/grey+step+640",
    }
    with Image.open(client.download_artifacts(run_id, next(p for p in images if "student" in p))) as stored:
        assert stored.tobytes() == picture.tobytes()


@pytest.mark.parametrize("wanted", [True, False])
def test_files_arrive_when_wanted_and_one_that_is_gone_holds_up_nothing(client, make_run, tracker, wanted):
    from freeflow_core.tracking import Replay

    journal = make_run()
    (journal.folder / "weights").mkdir()
    (journal.folder / "weights" / "a").write_text("w")
    (journal.folder / "samples").mkdir()
    (journal.folder / "samples" / "last.png").write_text("p")
    for name in ("gone", "weights", "samples/last.png"):
        journal.add_file(0, journal.folder / name)
    replay = Replay(tracker(log_artifacts=wanted), journal.run(), journal)
    replay.send()
    found = {item.path for item in client.list_artifacts(replay.notes["run_id"])}
    assert found == {"config.yaml"} | ({"weights", "samples"} if wanted else set())
    below = {item.path for item in client.list_artifacts(replay.notes["run_id"], "samples")}
    assert below == ({"samples/last.png"} if wanted else set())
    assert len(replay.sent.skipped) == 1


def test_resuming_goes_on_in_the_same_run(client, make_run, send):
    journal = make_run(config={"training": {"images": 1280}})
    journal.add_metrics(64, {"loss": 2.0, "odd": math.nan})
    run_id = send(journal, "stopped")
    assert client.get_run(run_id).info.status == "KILLED"
    (journal.folder / "config.yaml").write_text("name: first\ntraining: {images: 2560}\nnew: 1\n")
    assert send(journal) == run_id
    assert client.get_run(run_id).info.status == "RUNNING"
    journal.add_metrics(128, {"loss": 1.0, "odd": math.inf})
    assert send(journal, "finished") == run_id
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"name": "first", "training.images": "1280", "new": "1"}
    assert run.data.tags["freeflow.changed_on_resume"] == "training.images=2560"
    assert run.data.tags["nonfinite/odd"] == "2"
    assert [m.step for m in client.get_metric_history(run_id, "loss")] == [64, 128]


def test_a_run_deleted_in_mlflow_is_sent_again_whole_and_names_it(client, make_run, send):
    journal = make_run()
    record(journal)
    lost = send(journal, "stopped")
    client.delete_run(lost)
    found = send(journal, "finished")
    assert client.get_run(found).data.tags["freeflow.previous_run"] == lost
    check_complete(client, found)


def test_a_run_is_found_by_its_key_and_another_store_is_sent_all_of_it(client, make_run, send):
    journal = make_run()
    record(journal)
    run_id = send(journal)
    for note in (journal.folder / "trackers").glob("*.json"):
        note.unlink()
    assert send(journal) == run_id
    other = send(journal, experiment="another")
    assert other != run_id
    for found in (run_id, other):
        check_complete(client, found)


def test_a_run_by_an_older_version_can_be_sent(client, make_run, send):
    """Its records have no time, and its run.json no key."""
    journal = make_run()
    journal.metrics_file.write_text('{"images": 64, "loss": 1.5}\n')
    (journal.folder / "run.json").write_text('{"command": "distill", "status": "finished", "images": 64}')
    run = client.get_run(send(Journal(journal.folder), "finished"))
    assert run.data.metrics == {"loss": 1.5}
    assert send(journal) == run.info.run_id


@pytest.mark.parametrize(("asked", "expected"), [(False, ("true", "true")), (True, (None, None))])
def test_telemetry_is_off_unless_asked_for_and_the_users_timeouts_win(monkeypatch, asked, expected):
    import os

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    prepare_environment(MlflowConfig(telemetry=asked, retries=0))
    assert (os.environ.get("MLFLOW_DISABLE_TELEMETRY"), os.environ.get("DO_NOT_TRACK")) == expected
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "3"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"


def test_two_runs_at_once_do_not_mix_and_print_nothing(client, make_run, start, capfd, caplog):
    import mlflow

    caplog.set_level("INFO")
    journals = [make_run(name) for name in ("a", "b")]
    senders = [start(journal, experiment="two") for journal in journals]
    for step in range(20):
        for value, (journal, sender) in enumerate(zip(journals, senders, strict=True)):
            sender.recorded(journal.add_metrics(step, {"loss": float(value)}))
    for status, sender in zip(("finished", "failed"), senders, strict=True):
        sender.finish(status)
    assert mlflow.active_run() is None
    assert capfd.readouterr() == ("", "")
    assert {record.name for record in caplog.records} <= {"freeflow", "filelock"}
    assert "mlflow ui --backend-store-uri sqlite:///" in caplog.text
    experiment = client.get_experiment_by_name("two").experiment_id
    runs = client.search_runs([experiment], order_by=["attributes.run_name"])
    assert [(r.info.run_name, r.info.status) for r in runs] == [("a", "FINISHED"), ("b", "FAILED")]
    for value, run in enumerate(runs):
        assert [m.value for m in client.get_metric_history(run.info.run_id, "loss")] == [value] * 20
        assert Path(client.download_artifacts(run.info.run_id, "config.yaml")).is_file()
