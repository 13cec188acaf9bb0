"""A parent run and its children: joined whoever comes first, and kept while the server is away."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from freeflow_mlflow.spool import Spool
from freeflow_mlflow.tracker import MlflowTracker
from freeflow_mlflow.unsent import send_unsent

from freeflow_core.types import RunInfo, RunParent

PARENT_TAG = "mlflow.parentRunId"


@pytest.fixture
def family(tmp_path: Path) -> Callable[..., tuple[RunInfo, list[RunInfo]]]:
    """``family(key)``: a comparison and two runs of it."""

    def make(key: str = "the-key") -> tuple[RunInfo, list[RunInfo]]:
        folder = tmp_path / "runs" / "compare-x"
        folder.mkdir(parents=True, exist_ok=True)
        parent = RunInfo("x", "compare", folder, {"name": "x"}, "name: x\n", key=key, tags={"teacher": "t"})
        children = []
        for seed in (0, 1):
            own = folder / f"a-seed{seed}"
            own.mkdir(exist_ok=True)
            tags = {"objective": "a", "seed": str(seed), "teacher": "t", "budget": "images=64"}
            name = f"a-seed{seed}"
            children.append(
                RunInfo(
                    name,
                    "distill",
                    own,
                    {"seed": seed},
                    "",
                    key=f"{key}-{name}",
                    parent=RunParent(key, folder),
                    tags=tags,
                )
            )
        return parent, children

    return make


def run_of(tracker: MlflowTracker, client: Any) -> Any:
    return client.get_run(tracker.state()["run_id"])


def test_children_know_their_parent_and_their_tags(client, family, make_tracker) -> None:
    parent, children = family("first")
    above = make_tracker()
    above.start(parent, {})
    top = above.state()["run_id"]
    for child in children:
        below = make_tracker()
        below.start(child, {})
        below.log_metrics({"loss": 1.0}, 64)
        below.finish("finished")
        found = run_of(below, client)
        assert found.data.tags[PARENT_TAG] == top
        assert {key: found.data.tags[key] for key in child.tags} == child.tags
    (parent.folder / "comparison.md").write_text("a table")
    above.log_metrics({"a/fd_data_1_step": 2.5}, 2)
    above.log_file(parent.folder / "comparison.md")
    above.finish("finished")
    found = client.get_run(top)
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"a/fd_data_1_step": 2.5})
    assert PARENT_TAG not in found.data.tags
    assert found.data.tags["teacher"] == "t"
    assert Path(client.download_artifacts(top, "comparison.md")).read_text() == "a table"


def test_a_run_by_itself_has_no_parent(client, make_run, make_tracker) -> None:
    tracker = make_tracker()
    tracker.start(make_run("alone"), {})
    tracker.finish("finished")
    assert not {PARENT_TAG, "freeflow.parent_key"} & set(run_of(tracker, client).data.tags)


def test_a_parent_adopts_the_children_that_were_there_before_it(client, family, make_tracker) -> None:
    parent, (first, _) = family("late")
    early = make_tracker()
    early.start(first, {})
    early.finish("finished")
    assert PARENT_TAG not in run_of(early, client).data.tags
    above = make_tracker()
    above.start(parent, {})
    top = above.state()["run_id"]
    assert run_of(early, client).data.tags[PARENT_TAG] == top
    above.finish("finished")
    assert run_of(early, client).info.status == "FINISHED", "adoption leaves the child as it was"


def test_the_same_key_finds_the_same_runs_after_a_kill(client, family, make_tracker) -> None:
    """Nothing was checkpointed, so the trackers start without a state; MLflow has both runs already."""
    parent, (child, _) = family("killed")
    ids = []
    for _ in range(2):
        above, below = make_tracker(), make_tracker()
        above.start(parent, {})
        top = above.state()["run_id"]
        below.start(child, {})
        ids.append((top, below.state()["run_id"]))
        below.finish("finished")
        above.finish("finished")
    assert ids[0] == ids[1]


def test_a_dead_server_costs_nothing_and_one_command_sends_the_whole_family(
    client, store_uri, dead_uri, family, make_tracker
) -> None:
    parent, children = family("dead")
    above = make_tracker(uri=dead_uri)
    above.start(parent, {})
    assert above.state()["run_id"] is None
    for child in children:
        below = make_tracker(uri=dead_uri)
        below.start(child, {})
        below.log_metrics({"loss": 1.0}, 64)
        below.finish("finished")
    (parent.folder / "comparison.md").write_text("a table")
    above.log_file(parent.folder / "comparison.md")
    above.finish("finished")
    assert [len(Spool.all_of(run.folder)) for run in (parent, *children)] == [1, 1, 1]
    report = send_unsent(parent.folder, store_uri)
    assert (len(report.runs), report.metrics, report.artifacts) == (3, 2, 1)
    top, *others = report.runs
    assert client.get_run(top).data.tags["freeflow.key"] == "dead"
    assert [client.get_run(run).data.tags[PARENT_TAG] for run in others] == [top, top]
    assert not list(parent.folder.rglob("mlflow-unsent"))


def test_children_sent_before_their_parent_are_adopted_when_it_is_sent(
    client, store_uri, dead_uri, family, make_tracker
) -> None:
    parent, (child, _) = family("apart")
    for run in (parent, child):
        tracker = make_tracker(uri=dead_uri)
        tracker.start(run, {})
        tracker.finish("finished")
    (below,) = send_unsent(child.folder, store_uri).runs
    assert PARENT_TAG not in client.get_run(below).data.tags
    (top,) = send_unsent(parent.folder, store_uri).runs
    assert client.get_run(below).data.tags[PARENT_TAG] == top


def test_without_an_address_the_family_shares_one_store_beside_the_comparison(family, make_tracker, tmp_path) -> None:
    from mlflow import MlflowClient

    parent, (child, _) = family("together")
    above, below = make_tracker(uri=None), make_tracker(uri=None)
    above.start(parent, {})
    above.state()
    below.start(child, {})
    uris = {below.state()["uri"], above.state()["uri"]}
    assert uris == {f"sqlite:///{(tmp_path / 'runs' / 'mlflow.db').as_posix()}"}
    top, other = above.state()["run_id"], below.state()["run_id"]
    for tracker in (below, above):
        tracker.finish("finished")
    client = MlflowClient(tracking_uri=uris.pop())
    assert client.get_run(other).data.tags[PARENT_TAG] == top


def test_what_an_older_version_kept_can_still_be_sent(client, store_uri, dead_uri, make_run, make_tracker) -> None:
    tracker, run = make_tracker(uri=dead_uri), make_run("old")
    tracker.start(run, {})
    tracker.finish("finished")
    (spool,) = Spool.all_of(run.folder)
    head = json.loads((spool.folder / "run.json").read_text())
    for name in ("parent_key", "has_children"):
        del head[name]
    (spool.folder / "run.json").write_text(json.dumps(head))
    assert len(send_unsent(run.folder, store_uri).runs) == 1


def test_a_comparison_with_a_dead_server_finishes_and_is_sent_afterwards(
    client, store_uri, dead_uri, tmp_path, caplog
) -> None:
    from freeflow_core import api
    from freeflow_core.config.load_compare import load_compare_config
    from freeflow_core.plugin import Manager, Registry

    manager = Manager.load()
    tracker = {"name": "mlflow", "uri": dead_uri, "timeout_seconds": 1, "retries": 0, "flush_seconds": 0.2}
    config = load_compare_config(
        Registry(manager),
        overrides={
            "teacher": {"name": "gaussian-mixture", "layout": "ring"},
            "student": {"name": "mlp", "width": 16, "depth": 1},
            "training": {"images": 64, "batch_size": 16},
            "logging": {"every_images": 16},
            "evaluation": {
                "num_samples": 16,
                "batch_size": 16,
                "reference_steps": 2,
                "evaluators": ["energy-distance"],
            },
            "runtime": {"device": "cpu", "threads": 1},
            "trackers": [tracker],
        },
        comparison={"objectives": ["freeflow", "freeflow-prediction"], "seeds": 1},
    )
    folder = tmp_path / "compare-x"
    result = api.compare(config, output=folder, manager=manager)
    assert (result.status, result.failed) == ("finished", {})
    assert "mlflow-sync" in caplog.text
    report = send_unsent(folder, store_uri)
    top, *others = (client.get_run(run) for run in report.runs)
    assert {run.data.tags["objective"] for run in others} == {"freeflow", "freeflow-prediction"}
    assert {run.data.tags[PARENT_TAG] for run in others} == {top.info.run_id}
    assert {run.data.tags["budget"] for run in others} == {"images=64"}
    names = {item.path for item in client.list_artifacts(top.info.run_id)}
    assert {"comparison.md", "comparison.csv", "runs.csv", "comparison.png", "config.yaml"} <= names
    assert set(top.data.metrics) == {"freeflow/energy_teacher_1_step", "freeflow-prediction/energy_teacher_1_step"}
    assert len(client.get_metric_history(others[0].info.run_id, "student/loss")) == 4


def test_run_information_of_older_observers_still_fits() -> None:
    """New fields have defaults: plugins that make a ``RunInfo`` in their tests need not know them."""
    required = [f.name for f in dataclasses.fields(RunInfo) if f.default is f.default_factory is dataclasses.MISSING]
    assert required == ["name", "command", "folder", "config", "config_yaml"]
