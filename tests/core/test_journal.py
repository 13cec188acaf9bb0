"""The record of a run: read from any place, cut by a resume, whole after a kill."""

import math

import pytest

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces.journal import START, File, Journal, Picture


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path)


def test_records_come_back_in_order_from_any_place(journal, tmp_path):
    written = [journal.add_metrics(step, {"loss": step / 3, "odd": math.inf}) for step in range(5)]
    read = list(journal.metrics())
    assert [record for record, _ in read] == written
    for number, (_, place) in enumerate(read, 1):
        assert [record for record, _ in journal.metrics(place)] == written[number:]
    artifacts = [
        journal.add_picture(1, "samples", tmp_path / "samples" / "1.png"),
        journal.add_file(2, tmp_path.parent / "elsewhere.txt"),
    ]
    assert [artifact for artifact, _ in journal.artifacts()] == artifacts
    assert [type(artifact) for artifact in artifacts] == [Picture, File]


def test_files_are_found_in_a_folder_that_was_moved(journal, tmp_path):
    journal.add_file(0, tmp_path / "report.md")
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    ((file, _),) = Journal(moved).artifacts()
    assert file.path == moved / "report.md"


def test_what_a_kill_cut_short_is_passed_over(journal):
    first = journal.add_metrics(1, {"loss": 1.0})
    with journal.metrics_file.open("a") as file:
        file.write('{"images": 2, "lo')
    ((record, place),) = journal.metrics()
    assert record == first
    second = journal.add_metrics(2, {"loss": 2.0})
    assert [record for record, _ in journal.metrics()] == [first, second]
    assert [record for record, _ in journal.metrics(place)] == [second]


def test_a_cut_is_noticed_by_those_who_read_beyond_it(journal, tmp_path):
    for step in range(4):
        journal.add_metrics(step, {"loss": float(step)})
        journal.add_file(step, tmp_path / f"{step}")
    places = [place for _, place in journal.metrics()]
    journal.cut(1)
    assert [record.images for record, _ in journal.metrics()] == [0, 1]
    assert [record.images for record, _ in journal.artifacts()] == [0, 1]
    assert [journal.stands(place, START) for place in places] == [True, True, False, False]
    journal.add_metrics(2, {"loss": 9.0})
    journal.add_metrics(3, {"loss": 9.0})
    assert [journal.stands(place, START) for place in places] == [True, True, False, False]


def test_a_cut_may_forget_what_was_seen_of_the_checkpoint_itself(journal, tmp_path):
    training = [journal.add_metrics(step, {"loss": 1.0}) for step in (1, 2)]
    looks = [journal.add_metrics(2, {"evaluation/student/fid": 3.0}), journal.add_file(2, tmp_path / "2")]
    journal.cut(2)
    assert [record for record, _ in (*journal.metrics(), *journal.artifacts())] == [*training, *looks]
    journal.cut(2, looks=False)
    assert [record for record, _ in (*journal.metrics(), *journal.artifacts())] == training


def test_the_run_is_known_from_the_folder_alone(journal, tmp_path):
    with pytest.raises(ConfigError):
        journal.run()
    (tmp_path / "config.yaml").write_text("name: a-seed0\nseed: 3\n")
    journal.write_status(command="distill", key="own")
    run = journal.run()
    assert (run.name, run.command, run.key, run.parent, run.config["seed"]) == ("a-seed0", "distill", "own", None, 3)
    journal.write_status(membership={"key": "above", "tags": {"seed": "0"}})
    run = journal.run()
    assert (run.key, run.parent.key, run.parent.folder, run.tags) == (
        "above-a-seed0", "above", tmp_path.parent, {"seed": "0"},
    )  # fmt: skip
