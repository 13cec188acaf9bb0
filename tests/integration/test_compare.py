"""Comparisons from beginning to end: every run, nothing twice, and what happens when one of them breaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from compare_support import BASE, Watcher, comparison, troubled_manager

from freeflow_core import api
from freeflow_core.config.load_compare import load_compare_config, parse_sweep
from freeflow_core.errors import ConfigError, FreeflowError, Interrupted
from freeflow_core.network_file import load_tensors
from freeflow_core.plugin import Manager, Registry


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "compare-x"


@pytest.fixture
def watched(tmp_path: Path):
    """``manager, watcher``: all plugins, the objective ``troubled``, and an observer."""
    manager, watcher = troubled_manager(tmp_path), Watcher()
    manager.register(watcher, "watcher")
    return manager, watcher


def status_of(run: Path) -> str:
    return json.loads((run / "run.json").read_text())["status"]


def statuses(folder: Path) -> dict[str, str]:
    return json.loads((folder / "comparison.json").read_text())["runs"]


def test_a_comparison_trains_scores_and_shows_every_run(watched, folder):
    manager, watcher = watched
    config = comparison(manager, "freeflow", "shortcut", budget="forwards=2000")
    result = api.compare(config, output=folder, manager=manager)
    assert (result.status, result.failed) == ("finished", {})
    names = ["freeflow-seed0", "shortcut-seed0", "freeflow-seed1", "shortcut-seed1"]
    assert watcher.started == ["gaussian-mixture", *names]
    assert watcher.finished == [*((name, "finished") for name in names), ("gaussian-mixture", "finished")]
    for name in names:
        assert {"config.yaml", "scores.json", "student.safetensors", "report.md", "checkpoints"} <= {
            path.name for path in (folder / name).iterdir()
        }, "an ordinary run folder"

    freeflow, shortcut = result.table.rows
    assert set(freeflow.scores) == {1}, "trained from the prior alone: no few-step mode"
    assert set(shortcut.scores) == {1, 2, 4}
    for row in (freeflow, shortcut):
        assert row.images == int(2000 / row.forwards_per_image) // 16 * 16
        assert row.scores[1].number == 2
        assert row.scores[1].deviation > 0
        assert row.fidelity.mean > 0
    assert freeflow.images != shortcut.images

    configs = {name: yaml.safe_load((folder / name / "config.yaml").read_text()) for name in names}
    assert {c["source"]["name"] for name, c in configs.items() if "freeflow" in name} == {"prior"}
    assert {c["source"]["name"] for name, c in configs.items() if "shortcut" in name} == {"gaussian-mixture"}
    assert {c["evaluation"]["seed"] for c in configs.values()} == {1_000_003}, "the same noise for all"
    assert [configs[name]["seed"] for name in names] == [0, 0, 1, 1]
    assert all(path.is_file() for path in result.files.values())
    assert set(result.files) == {"table", "csv", "runs", "plot"}


def test_the_teacher_is_scored_once_and_its_rows_are_everyones(watched, folder):
    manager, watcher = watched
    result = api.compare(comparison(manager, "freeflow", "shortcut"), output=folder, manager=manager)
    of_teacher = [entry for entry in watcher.scored if entry[1].startswith("teacher")]
    assert of_teacher == [("freeflow-seed0", "teacher"), ("freeflow-seed0", "teacher_1_step")]
    rows = [json.loads((folder / run / "scores.json").read_text()) for run in statuses(folder)]
    assert all(row["teacher"] == rows[0]["teacher"] for row in rows)
    assert all(row["teacher_1_step"] == rows[0]["teacher_1_step"] for row in rows)
    assert rows[0]["student"]["energy_teacher"] != rows[1]["student"]["energy_teacher"]
    assert result.table.teacher["teacher_1_step"] == rows[0]["teacher_1_step"]
    alone = api.evaluate(
        yaml_config(manager, folder / "shortcut-seed1"), student=folder / "shortcut-seed1", manager=manager
    )
    shared = json.loads((folder / "shortcut-seed1" / "scores.json").read_text())
    assert without_time(alone.scores) == without_time(shared), "sharing changes no score"


def yaml_config(manager: Manager, run: Path):
    return api.resolve_config("distill", config_file=run / "config.yaml", manager=manager)


def without_time(scores):
    return {row: {k: v for k, v in own.items() if k != "ms_per_image"} for row, own in scores.items()}


def test_the_same_command_again_repeats_nothing(watched, folder):
    manager, watcher = watched
    first = api.compare(comparison(manager, "freeflow", "shortcut"), output=folder, manager=manager)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("student.safetensors")}
    key = json.loads((folder / "comparison.json").read_text())["key"]
    watcher.started.clear()
    second = api.compare(comparison(manager, "freeflow", "shortcut"), output=folder, manager=manager)
    assert watcher.started == ["gaussian-mixture"]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("student.safetensors")} == before
    assert second.table == first.table
    assert json.loads((folder / "comparison.json").read_text())["key"] == key

    more = api.compare(comparison(manager, "freeflow", "shortcut", "eulerian", seeds=3), output=folder, manager=manager)
    assert [row.status for row in more.table.rows] == ["3 of 3"] * 3
    assert len([row for _, row in watcher.scored if row == "teacher_1_step"]) == 1, "a second start takes the first's"
    assert more.table.teacher == first.table.teacher != {}
    assert len(watcher.started) == 2 + 3 + 2  # two parents, three runs of eulerian, two third seeds
    assert {path: path.stat().st_mtime_ns for path in before} == before
    with pytest.raises(ConfigError, match=r"learning_rate: 0\.001 -> 0\.01"):
        api.compare(
            comparison(
                manager,
                "freeflow",
                "shortcut",
                "eulerian",
                seeds=3,
                assignments=("training.optimizer.learning_rate=0.01",),
            ),
            output=folder,
            manager=manager,
        )


def test_a_dry_run_measures_and_writes_nothing(watched, folder):
    manager, watcher = watched
    config = comparison(manager, "freeflow", "shortcut", budget="forwards=2000")
    result = api.compare(config, output=folder, dry_run=True, manager=manager)
    assert (result.status, watcher.started, folder.exists()) == ("planned", [], False)
    assert all(row.images and row.forwards_per_image and row.status == "0 of 2" for row in result.table.rows)


def test_a_failing_run_is_recorded_and_the_others_go_on(watched, folder, tmp_path):
    manager, watcher = watched
    config = comparison(
        manager,
        "troubled",
        "freeflow",
        settings_for={"troubled": {"objective": {"only_once": str(tmp_path / "done")}}},
    )
    result = api.compare(config, output=folder, manager=manager)
    assert result.status == "failed"
    assert result.failed == {"troubled-seed0": "RuntimeError: something broke."}
    assert ("troubled-seed0", "failed") in watcher.finished
    assert watcher.finished[-1] == ("gaussian-mixture", "failed")
    assert statuses(folder) == {
        "troubled-seed0": "failed",
        "freeflow-seed0": "finished",
        "troubled-seed1": "finished",
        "freeflow-seed1": "finished",
    }
    troubled, _ = result.table.rows
    assert (troubled.status, troubled.scores[1].number) == ("1 of 2, 1 failed", 1)
    assert "`troubled-seed0`: RuntimeError: something broke." in result.files["table"].read_text()
    watcher.started.clear()
    again = api.compare(config, output=folder, manager=manager)
    assert (again.status, again.failed) == ("finished", {})
    assert watcher.started == ["gaussian-mixture", "troubled-seed0"], "only what had failed"


def test_an_objective_whose_cost_cannot_be_measured_is_a_failed_one(watched, folder, monkeypatch):
    manager, _ = watched
    from freeflow_core.tools.compare import lengths

    really = lengths.measure_cost

    def breaks(config, registry, *, speed):
        if config.objective.name == "troubled":
            raise RuntimeError("out of memory")
        return really(config, registry, speed=speed)

    monkeypatch.setattr(lengths, "measure_cost", breaks)
    result = api.compare(comparison(manager, "troubled", "freeflow", seeds=1), output=folder, manager=manager)
    assert result.failed == {"troubled-seed0": "RuntimeError: out of memory."}
    assert [row.status for row in result.table.rows] == ["0 of 1, 1 failed", "1 of 1"]
    monkeypatch.undo()
    assert api.compare(
        comparison(manager, "troubled", "freeflow", seeds=1, settings_for={}), output=folder, manager=manager
    ).failed == {"troubled-seed0": "RuntimeError: something broke."}, "measured now, and failing for its own reason"


def test_ctrl_c_stops_and_the_same_command_ends_with_the_same_weights(watched, folder, tmp_path):
    manager, watcher = watched

    def config(action):
        options = {"only_once": str(tmp_path / f"done-{action}"), "action": action, "at_image": 32}
        return comparison(manager, "freeflow", "troubled", seeds=1, settings_for={"troubled": {"objective": options}})

    with pytest.raises(Interrupted, match=r"1 of 2 runs are finished.*same command goes on"):
        api.compare(config("interrupt"), output=folder, manager=manager)
    assert (status_of(folder / "freeflow-seed0"), status_of(folder / "troubled-seed0")) == ("finished", "interrupted")
    assert watcher.finished[-1] == ("gaussian-mixture", "interrupted")
    watcher.started.clear()
    assert api.compare(config("interrupt"), output=folder, manager=manager).status == "finished"
    assert watcher.started == ["gaussian-mixture", "troubled-seed0"]
    whole = folder.parent / "whole"
    api.compare(config("none"), output=whole, manager=manager)
    for name in ("freeflow-seed0", "troubled-seed0"):
        first, second = (load_tensors(f / name / "student.safetensors")[0] for f in (folder, whole))
        assert all(first[key].equal(second[key]) for key in first)


KILLED = """
import sys
sys.path[:0] = [{support!r}]
from pathlib import Path
from compare_support import Watcher, comparison, troubled_manager
from freeflow_core import api
manager, watcher = troubled_manager(Path({folder!r})), Watcher()
manager.register(watcher, "watcher")
options = {{"action": "kill", "only_once": {once!r}}}
config = comparison(manager, "freeflow", "troubled", settings_for={{"troubled": {{"objective": options}}}})
result = api.compare(config, output=Path({output!r}), manager=manager)
print(result.status, watcher.started)
"""


def test_a_killed_process_loses_the_run_in_hand_at_most(folder, tmp_path):
    values = {
        "support": str(Path(__file__).parent),
        "folder": str(tmp_path),
        "once": str(tmp_path / "done"),
        "output": str(folder),
    }
    code = KILLED.format(**values)

    def start():
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=200)

    first = start()
    assert first.returncode == -9, first.stderr
    assert status_of(folder / "freeflow-seed0") == "finished"
    assert status_of(folder / "troubled-seed0") == "running"
    before = (folder / "freeflow-seed0" / "student.safetensors").stat().st_mtime_ns
    second = start()
    assert second.returncode == 0, second.stderr
    assert second.stdout.strip().endswith(
        "finished ['gaussian-mixture', 'troubled-seed0', 'freeflow-seed1', 'troubled-seed1']"
    )
    assert (folder / "freeflow-seed0" / "student.safetensors").stat().st_mtime_ns == before
    assert not list(folder.rglob("*.partial"))


def test_a_full_disk_ends_the_comparison_and_keeps_what_was_finished(watched, folder, tmp_path):
    manager, watcher = watched
    options = {"action": "fill-disk", "only_once": str(tmp_path / "done")}
    config = comparison(manager, "freeflow", "troubled", settings_for={"troubled": {"objective": options}})
    with pytest.raises(FreeflowError, match=r"The disk is full.*What was finished is kept.*same command again"):
        api.compare(config, output=folder, manager=manager)
    assert watcher.started == ["gaussian-mixture", "freeflow-seed0", "troubled-seed0"], "the others would fail as well"
    assert status_of(folder / "freeflow-seed0") == "finished"
    assert "2 of 2" not in (folder / "comparison.md").read_text()
    result = api.compare(config, output=folder, manager=manager)
    assert [row.status for row in result.table.rows] == ["2 of 2", "2 of 2"]
    assert watcher.started.count("freeflow-seed0") == 1


def test_a_disk_that_is_full_from_the_start_is_said(watched, folder, monkeypatch):
    manager, watcher = watched
    from freeflow_core.tools.compare import manifest

    def full(path, write):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(manifest, "write_atomically", full)
    with pytest.raises(FreeflowError, match="The disk is full"):
        api.compare(comparison(manager, "freeflow"), output=folder, manager=manager)
    assert watcher.started == []
    assert not folder.exists()


def test_students_and_sources_follow_the_objective(watched, folder):
    manager, _ = watched
    result = api.compare(comparison(manager, "pi-flow", "freeflow", seeds=1), output=folder, manager=manager)
    assert (result.status, result.failed) == ("finished", {})
    policy = yaml.safe_load((folder / "pi-flow-seed0" / "config.yaml").read_text())
    assert (policy["student"]["name"], policy["student"]["width"], policy["student"]["depth"]) == ("mlp-policy", 16, 1)
    assert policy["source"]["name"] == "gaussian-mixture"


@pytest.mark.parametrize(
    ("objectives", "section", "assignments", "message"),
    [
        (("shortcut", "freeflow"), {}, ("source=prior",), r"'shortcut' trains on data.*--source"),
        (("freeflow",), {}, ("source=gaussian-mixture",), r"None of these objectives trains on data"),
        (
            ("shortcut", "freeflow"),
            {"settings_for": {"freeflow": {"source": {"seed": 1}}}},
            (),
            r"'freeflow' is data-free.*never see",
        ),
        (
            ("freeflow", "shortcut"),
            {"sweep": parse_sweep("source.seed=1,2")},
            ("source=digits", "student=transformer"),
            ".",
        ),
        (("shortcut",), {"budget": "forwards=10"}, (), "does not buy one step of shortcut"),
        (("shortcut",), {}, ("source=digits", "codec=pixels"), r"digits"),
        (("pi-flow",), {}, ("student=transformer",), r"."),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_anything_is_written(
    watched, folder, objectives, section, assignments, message
):
    manager, watcher = watched
    with pytest.raises(ConfigError, match=message):
        api.compare(
            comparison(manager, *objectives, assignments=assignments, **section), output=folder, manager=manager
        )
    assert watcher.started == []
    assert not folder.exists()


def test_a_sweep_trains_data_free_objectives_once_and_draws_them_flat(watched, folder):
    manager, watcher = watched
    config = comparison(manager, "shortcut", "freeflow", sweep=parse_sweep("source.std=0.1,0.3,0.5"))
    result = api.compare(config, output=folder, manager=manager)
    assert (result.status, result.failed) == ("finished", {})
    assert [(row.name, row.value) for row in result.table.rows] == [
        ("shortcut-std-0.1", 0.1),
        ("shortcut-std-0.3", 0.3),
        ("shortcut-std-0.5", 0.5),
        ("freeflow", None),
    ]
    assert sorted(run for run in statuses(folder) if "freeflow" in run) == ["freeflow-seed0", "freeflow-seed1"]
    stds = [
        yaml.safe_load((folder / f"shortcut-std-{v}-seed0" / "config.yaml").read_text())["source"]["std"]
        for v in (0.1, 0.3, 0.5)
    ]
    assert stds == [0.1, 0.3, 0.5]
    assert result.files["plot"].name == "sweep.png"
    assert len([row for run, row in watcher.scored if row == "teacher"]) == 1


def test_a_sweep_that_changes_nothing_is_refused(watched, folder):
    manager, _ = watched
    with pytest.raises(ConfigError, match=r"Unknown setting 'source\.std' of the source 'prior'"):
        comparison(manager, "freeflow", sweep=parse_sweep("source.std=0.1,0.3"))
    config = comparison(
        manager, "freeflow", sweep=parse_sweep("source.std=0.1,0.3"), assignments=("source=gaussian-mixture",)
    )
    with pytest.raises(ConfigError, match=r"sweep of source\.std changes none of these runs"):
        api.compare(config, output=folder, manager=manager)


def test_a_swept_evaluation_scores_the_teacher_anew(watched, folder):
    manager, watcher = watched
    config = comparison(manager, "shortcut", seeds=1, sweep=parse_sweep("evaluation.reference_steps=2,4"))
    result = api.compare(config, output=folder, manager=manager)
    assert [run for run, row in watcher.scored if row == "teacher"] == [
        "shortcut-reference_steps-2-seed0",
        "shortcut-reference_steps-4-seed0",
    ]
    assert result.status == "finished"


def test_a_budget_of_seconds_is_measured_once(watched, folder, monkeypatch):
    manager, _ = watched
    from freeflow_core.tools.compare import cost

    monkeypatch.setattr(cost, "_SECONDS", 0.05)
    config = comparison(manager, "freeflow", seeds=1, budget="seconds=0.5")
    first = api.compare(config, output=folder, manager=manager)
    (row,) = first.table.rows
    measured = json.loads((folder / "comparison.json").read_text())["variants"]["freeflow"]
    assert row.images == int(0.5 * measured["cost"]["images_per_second"]) // 16 * 16 > 0
    monkeypatch.setattr(cost, "measure_cost", None)
    again = api.compare(config, output=folder, manager=manager)
    assert again.table.rows[0].images == row.images, "a second start must train the same run"
    longer = comparison(manager, "freeflow", seeds=2, budget="seconds=0.5")
    assert api.compare(longer, output=folder, manager=manager).table.rows[0].status == "2 of 2"


def test_one_process_at_a_time(watched, folder, monkeypatch):
    from filelock import FileLock

    manager, _ = watched
    folder.mkdir(parents=True)
    with (
        FileLock(folder / ".lock"),
        pytest.raises(FreeflowError, match="Another process is at work"),
    ):
        api.compare(comparison(manager, "freeflow"), output=folder, manager=manager)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="single process"):
        api.compare(comparison(manager, "freeflow"), output=folder, manager=manager)


def test_a_run_of_a_comparison_is_resumed_by_itself_too(watched, folder, tmp_path):
    manager, watcher = watched
    options = {"only_once": str(tmp_path / "done"), "action": "interrupt"}
    config = comparison(manager, "troubled", seeds=1, settings_for={"troubled": {"objective": options}})
    with pytest.raises(Interrupted):
        api.compare(config, output=folder, manager=manager)
    run = folder / "troubled-seed0"
    api.distill(yaml_config(manager, run), output=run, resume=True, manager=manager)
    assert json.loads((run / "run.json").read_text())["membership"]["tags"]["objective"] == "troubled"
    watcher.started.clear()
    assert api.compare(config, output=folder, manager=manager).status == "finished"
    assert watcher.started == ["gaussian-mixture"]


def test_a_run_killed_while_its_folder_was_made_begins_again(watched, folder):
    manager, _ = watched
    run = folder / "freeflow-seed0"
    run.mkdir(parents=True)
    (run / ".config.yaml.partial").write_text("nam")
    config = comparison(manager, "freeflow", seeds=1)
    with pytest.raises(ConfigError, match="already holds other files"):
        api.compare(config, output=folder, manager=manager)
    registry = Registry(manager)
    from freeflow_core.tools.compare.manifest import Manifest
    from freeflow_core.tools.compare.runner import Comparison

    Manifest.open(folder.parent / "y", config, Comparison(config, manager, folder)._variants).write({})
    (folder.parent / "y" / "comparison.json").rename(folder / "comparison.json")
    assert api.compare(config, output=folder, manager=manager).status == "finished"
    assert registry.components("objective")


def test_arguments_are_resolved_as_the_command_line_does(folder, manager, monkeypatch, tmp_path):
    """Without a resolved configuration, over the digits preset; only planned here."""
    result = api.compare(
        teacher="gaussian-mixture",
        objectives=["freeflow", "shortcut"],
        seeds=1,
        budget="images=32",
        source="gaussian-mixture",
        settings=[
            "student=mlp",
            "codec=states",
            "reference=null",
            "trackers=[]",
            "training.batch_size=16",
            "runtime.threads=1",
            "evaluation.evaluators=[energy-distance]",
        ],
        settings_for=["shortcut:training.batch_size=8"],
        output=folder,
        dry_run=True,
        manager=manager,
    )
    assert [(row.objective, row.images, row.planned) for row in result.table.rows] == [
        ("freeflow", 32, 1),
        ("shortcut", 32, 1),
    ]
    steps = {row.objective: row.forwards_per_step / row.forwards_per_image for row in result.table.rows}
    assert steps == {"freeflow": 16, "shortcut": 8}


def test_the_base_of_these_tests_is_complete(manager):
    config = load_compare_config(Registry(manager), overrides=BASE, comparison={"objectives": ["freeflow"]})
    assert config.name == "gaussian-mixture"
