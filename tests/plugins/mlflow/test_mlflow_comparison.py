"""A parent run and its children: joined whoever comes first, and sent with one command."""

import dataclasses

import pytest
from mlflow_support import record
from run_helpers import TINY

PARENT = "mlflow.parentRunId"


@pytest.fixture
def family(make_run):
    """A comparison and a run of it."""
    parent = make_run("compare", tags={"teacher": "t"})
    membership = {"key": parent.status()["key"], "tags": {"objective": "a", "seed": "0"}}
    return parent, make_run("compare/a-seed0", membership=membership)


@pytest.mark.parametrize("parent_first", [True, False])
def test_children_and_parent_find_each_other(client, family, send, tracker, tmp_path, parent_first):
    uris = {tracker(uri=None).options(journal.run())["mlflow"]["uri"] for journal in family}
    assert uris == {f"sqlite:///{(tmp_path / 'runs' / 'mlflow.db').as_posix()}"}
    parent, child = family
    record(child)
    first, second = (parent, child) if parent_first else (child, parent)
    ids = {first: send(first, "finished")}
    ids[second] = send(second, "finished")
    above, below = (client.get_run(ids[journal]) for journal in family)
    assert below.data.tags[PARENT] == above.info.run_id
    assert below.data.tags["objective"] == "a"
    assert below.info.run_name.endswith("a-seed0")
    assert below.info.status == "FINISHED"
    assert PARENT not in above.data.tags
    assert above.data.tags["teacher"] == "t"


def test_a_comparison_with_a_dead_server_finishes_and_is_sent_afterwards(client, store_uri, dead_uri, tmp_path, caplog):
    from freeflow_mlflow.plugin import mlflow_sync

    from freeflow_core import api
    from freeflow_core.config.compare import load_compare_config
    from freeflow_core.plugin import Manager, Registry

    manager = Manager.load()
    tracker = {"name": "mlflow", "uri": dead_uri, "timeout_seconds": 1, "retries": 0, "flush_seconds": 0.2}
    config = load_compare_config(
        Registry(manager),
        overrides=TINY
        | {
            "training": {"images": 64, "batch_size": 16},
            "logging": {"every_images": 16},
            "evaluation": {"num_samples": 16, "reference_steps": 2, "evaluators": ["energy-distance"]},
            "trackers": [tracker],
        },
        comparison={"objectives": ["freeflow-prediction"], "seeds": 1},
    )
    folder = tmp_path / "compare-x"
    config = dataclasses.replace(config, preset="small")
    result = api.compare(config, output=folder, manager=manager)
    assert (result.status, result.failed) == ("finished", {})
    assert "mlflow-sync" in caplog.text
    mlflow_sync(folder, store_uri)
    (top,) = client.search_runs(["1"], f"tags.`freeflow.folder` = '{folder}'")
    others = client.search_runs(["1"], f"tags.`{PARENT}` = '{top.info.run_id}'")
    assert {run.data.tags["objective"] for run in others} == {"freeflow-prediction"}
    assert {run.data.tags["budget"] for run in others} == {"images=64"}
    assert {run.data.tags["preset"] for run in (top, *others)} == {"small"}
    assert {run.info.status for run in (top, *others)} == {"FINISHED"}
    names = {item.path for item in client.list_artifacts(top.info.run_id)}
    assert {"comparison.md", "comparison.csv", "runs.csv", "comparison.png", "comparison.yaml"} <= names
    assert set(top.data.metrics) == {"freeflow-prediction/energy_teacher_1_step"}
    assert len(client.get_metric_history(others[0].info.run_id, "student/loss")) == 4
