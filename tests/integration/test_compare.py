"""Comparisons from beginning to end: every run, nothing twice, and what happens when one of them breaks."""

import json
import os
import shutil

import pytest
import torch
import yaml
from compare_support import Watcher, comparison, troubled_manager
from filelock import FileLock

from freeflow_core import api
from freeflow_core.config.compare import load_compare_config
from freeflow_core.engine.build import Builder
from freeflow_core.errors import ConfigError, FreeflowError, Interrupted
from freeflow_core.network_file import load_tensors
from freeflow_core.plugin import Registry
from freeflow_core.tools.compare import runner
from freeflow_core.tools.compare.manifest import Manifest
from freeflow_core.tools.compare.plan import Planner


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "compare-x"


@pytest.fixture
def watched(tmp_path):
    """``manager, watcher``: all plugins, the objective ``troubled``, and an observer."""
    manager, watcher = troubled_manager(tmp_path), Watcher()
    manager.register(watcher, "watcher")
    return manager, watcher


def troubled(manager, *objectives, once, action="raise"):
    """A comparison of one seed in which ``troubled`` breaks down unless the file ``once`` says that it did."""
    options = {"only_once": str(once), "action": action}
    return comparison(manager, *objectives, seeds=1, settings_for={"troubled": {"objective": options}})


def status_of(run):
    return json.loads((run / "run.json").read_text())["status"]


def statuses(folder):
    return json.loads((folder / "comparison.json").read_text())["runs"]


NAMES = ["freeflow-seed0", "shortcut-seed0", "freeflow-seed1", "shortcut-seed1"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """``result, watcher, manager`` of one comparison that several tests look at; none of them changes its folder."""
    base = tmp_path_factory.mktemp("whole")
    manager, watcher = troubled_manager(base), Watcher()
    manager.register(watcher, "watcher")
    config = comparison(manager, "freeflow", "shortcut", budget="forwards=1000")
    return api.compare(config, output=base / "runs" / "compare-x", manager=manager), watcher, manager


def test_a_comparison_trains_scores_and_shows_every_run(whole):
    result, watcher, _ = whole
    assert (result.status, result.failed) == ("finished", {})
    assert watcher.started == ["gaussian-mixture", *NAMES]
    assert watcher.finished == [*((name, "finished") for name in NAMES), ("gaussian-mixture", "finished")]
    for name in NAMES:
        assert {"config.yaml", "scores.json", "student.safetensors", "report.md", "checkpoints"} <= {
            path.name for path in (result.folder / name).iterdir()
        }, "an ordinary run folder"

    freeflow, shortcut = result.table.rows
    assert set(freeflow.scores) == {1}, "trained from the prior alone: no few-step mode"
    assert set(shortcut.scores) == {1, 2, 4}
    for row in (freeflow, shortcut):
        assert row.images == int(1000 / row.forwards_per_image) // 16 * 16
        assert row.scores[1].number == 2
        assert row.scores[1].deviation > 0
        assert row.fidelity.mean > 0
        assert len(row.curve) > 1, "scored during training too"
        assert row.curve[row.images] == row.scores[1]
    assert freeflow.images != shortcut.images

    configs = {name: yaml.safe_load((result.folder / name / "config.yaml").read_text()) for name in NAMES}
    assert {c["source"]["name"] for name, c in configs.items() if "freeflow" in name} == {"prior"}
    assert {c["source"]["name"] for name, c in configs.items() if "shortcut" in name} == {"gaussian-mixture"}
    assert {c["evaluation"]["seed"] for c in configs.values()} == {1_000_003}, "the same noise for all"
    assert [configs[name]["seed"] for name in NAMES] == [0, 0, 1, 1]
    assert all(path.is_file() for path in result.files.values())
    assert set(result.files) == {"table", "csv", "runs", "plot"}


def test_the_teacher_is_scored_once_and_its_rows_are_everyones(whole):
    result, watcher, manager = whole
    of_teacher = [entry for entry in watcher.scored if entry[1].startswith("teacher")]
    assert of_teacher == [("freeflow-seed0", "teacher"), ("freeflow-seed0", "teacher_1_step")]
    rows = [json.loads((result.folder / run / "scores.json").read_text()) for run in NAMES]
    for name in ("teacher", "teacher_1_step"):
        assert all(row[name] == rows[0][name] == result.table.teacher[name] for row in rows)
    assert rows[0]["student"]["energy_teacher"] != rows[1]["student"]["energy_teacher"]
    run = result.folder / NAMES[-1]
    alone = api.evaluate(yaml_config(manager, run), student=run, manager=manager)
    assert without_time(alone.scores) == without_time(rows[-1]), "sharing changes no score"


def yaml_config(manager, run):
    return api.resolve_config("distill", config_file=run / "config.yaml", manager=manager)


def without_time(scores):
    return {row: {k: v for k, v in own.items() if k != "ms_per_image"} for row, own in scores.items()}


def test_the_same_command_again_repeats_nothing_and_objectives_may_be_added(whole, watched, folder):
    first, (manager, watcher) = whole[0], watched
    shutil.copytree(first.folder, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("student.safetensors")}
    section = {"budget": "forwards=1000"}
    second = api.compare(comparison(manager, "freeflow", "shortcut", **section), output=folder, manager=manager)
    assert watcher.started == ["gaussian-mixture"]
    assert second.table == first.table

    objectives = ("freeflow", "shortcut", "eulerian")
    more = api.compare(comparison(manager, *objectives, **section), output=folder, manager=manager)
    assert [row.status for row in more.table.rows] == ["2 of 2"] * 3
    assert ("eulerian-seed0", "teacher_1_step") not in watcher.scored, "a second start takes the first's rows"
    assert more.table.teacher == first.table.teacher != {}
    assert watcher.started == ["gaussian-mixture"] * 2 + ["eulerian-seed0", "eulerian-seed1"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    changed = comparison(manager, *objectives, **section, assignments=("training.optimizer.learning_rate=0.01",))
    with pytest.raises(ConfigError, match=r"learning_rate: 0\.001 -> 0\.01"):
        api.compare(changed, output=folder, manager=manager)


def test_a_dry_run_measures_and_writes_nothing(watched, folder):
    manager, watcher = watched
    config = comparison(manager, "freeflow", "shortcut", budget="forwards=2000")
    result = api.compare(config, output=folder, dry_run=True, manager=manager)
    assert (result.status, watcher.started, folder.exists()) == ("planned", [], False)
    assert all(row.images and row.forwards_per_image and row.status == "0 of 2" for row in result.table.rows)


def test_a_failing_run_is_recorded_and_the_others_go_on(watched, folder, tmp_path):
    manager, watcher = watched
    config = troubled(manager, "troubled", "freeflow", once=tmp_path / "done")
    result = api.compare(config, output=folder, manager=manager)
    assert result.status == "failed"
    assert result.failed == {"troubled-seed0": "RuntimeError: something broke."}
    assert ("troubled-seed0", "failed") in watcher.finished
    assert watcher.finished[-1] == ("gaussian-mixture", "failed")
    assert statuses(folder) == {"troubled-seed0": "failed", "freeflow-seed0": "finished"}
    assert [row.status for row in result.table.rows] == ["0 of 1, 1 failed", "1 of 1"]
    assert "`troubled-seed0`: RuntimeError: something broke." in result.files["table"].read_text()
    watcher.started.clear()
    again = api.compare(config, output=folder, manager=manager)
    assert (again.status, again.failed) == ("finished", {})
    assert watcher.started == ["gaussian-mixture", "troubled-seed0"], "only what had failed"


def test_an_objective_whose_cost_cannot_be_measured_is_a_failed_one(watched, folder, monkeypatch):
    manager, _ = watched
    from freeflow_core.tools.compare import runner

    really = runner.measure_cost

    def breaks(config, registry):
        if config.objective.name == "troubled":
            raise RuntimeError("out of memory")
        return really(config, registry)

    monkeypatch.setattr(runner, "measure_cost", breaks)
    result = api.compare(comparison(manager, "troubled", "freeflow", seeds=1), output=folder, manager=manager)
    assert result.failed == {"troubled-seed0": "RuntimeError: out of memory."}
    assert [row.status for row in result.table.rows] == ["0 of 1, 1 failed", "1 of 1"]


@pytest.mark.long
def test_ctrl_c_or_a_kill_stops_and_the_same_command_ends_with_the_same_weights(watched, folder, tmp_path):
    manager, watcher = watched

    def config(action):
        return troubled(manager, "freeflow", "troubled", once=tmp_path / f"done-{action}", action=action)

    with pytest.raises(Interrupted, match=r"1 of 2 runs are finished.*same command goes on"):
        api.compare(config("interrupt"), output=folder, manager=manager)
    assert (status_of(folder / "freeflow-seed0"), status_of(folder / "troubled-seed0")) == ("finished", "interrupted")
    assert watcher.finished[-1] == ("gaussian-mixture", "interrupted")
    state = folder / "troubled-seed0" / "run.json"
    state.write_text(state.read_text().replace("interrupted", "running"))  # as a killed process leaves it
    watcher.started.clear()
    assert api.compare(config("interrupt"), output=folder, manager=manager).status == "finished"
    assert watcher.started == ["gaussian-mixture", "troubled-seed0"]
    whole = folder.parent / "whole"
    api.compare(config("none"), output=whole, manager=manager)
    for name in ("freeflow-seed0", "troubled-seed0"):
        first, second = (load_tensors(f / name / "student.safetensors")[0] for f in (folder, whole))
        assert all(first[key].equal(second[key]) for key in first)


@pytest.mark.long
def test_a_full_disk_ends_the_comparison_and_keeps_what_was_finished(watched, folder, tmp_path):
    manager, watcher = watched
    objectives = ("freeflow", "troubled", "freeflow-prediction")
    config = troubled(manager, *objectives, once=tmp_path / "done", action="fill-disk")
    with pytest.raises(FreeflowError, match="The disk is full"):
        api.compare(config, output=folder, manager=manager)
    assert watcher.started == ["gaussian-mixture", "freeflow-seed0", "troubled-seed0"], "the other would fail as well"
    assert status_of(folder / "freeflow-seed0") == "finished"
    result = api.compare(config, output=folder, manager=manager)
    assert [row.status for row in result.table.rows] == ["1 of 1"] * 3
    assert watcher.started.count("freeflow-seed0") == 1


def test_a_disk_that_is_full_from_the_start_is_said(watched, folder, monkeypatch):
    manager, watcher = watched
    from freeflow_core.tools import job_folder

    def full(path, text):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(job_folder, "write_text", full)
    with pytest.raises(FreeflowError, match="The disk is full"):
        api.compare(comparison(manager, "freeflow"), output=folder, manager=manager)
    assert watcher.started == []
    assert not folder.exists()


def test_students_and_sources_follow_the_objective(manager):
    builder = Builder(Registry(manager), torch.device("cpu"), seed=0)
    policy, freeflow = (v.config for v in Planner(comparison(manager, "pi-flow", "freeflow"), builder).variants())
    assert policy.student.name == "mlp-policy"
    assert (policy.student.options.width, policy.student.options.depth) == (16, 1)
    assert (freeflow.student.name, freeflow.source.name, policy.source.name) == ("mlp", "prior", "gaussian-mixture")


def test_the_presets_source_rests_where_all_objectives_are_data_free(manager):
    registry = Registry(manager)
    config = load_compare_config(registry, preset="mnist", comparison={"objectives": ["freeflow"]})
    (freeflow,) = Planner(config, Builder(registry, torch.device("cpu"), seed=0)).variants()
    assert config.base["source"]["name"] == "latents"
    assert freeflow.config.source.name == "prior"


@pytest.mark.parametrize(
    ("objectives", "section", "assignments", "message"),
    [
        (("shortcut", "freeflow"), {}, ("source=prior",), r"'shortcut' trains on data.*--source"),
        (("freeflow",), {}, ("source=gaussian-mixture",), r"None of these objectives trains on data"),
        (
            ("shortcut", "freeflow"),
            {"settings_for": {"freeflow": {"source": {"seed": 1}}}},
            (),
            "'freeflow' is data-free",
        ),
        (("freeflow", "shortcut"), {"sweep": "source.seed=1,2"}, ("source=digits", "student=transformer"), "."),
        (("shortcut",), {"budget": "forwards=10"}, (), "does not buy one step of shortcut"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_anything_is_written(
    watched, folder, objectives, section, assignments, message
):
    manager, watcher = watched
    config = comparison(manager, *objectives, assignments=assignments, **section)
    with pytest.raises(ConfigError, match=message):
        api.compare(config, output=folder, manager=manager)
    assert watcher.started == []
    assert not folder.exists()


def test_a_sweep_trains_data_free_objectives_once_and_draws_them_flat(watched, folder):
    manager, watcher = watched
    config = comparison(
        manager, "shortcut", "freeflow", seeds=1, sweep="source.std=0.1,0.5", assignments=("evaluation.cache=false",)
    )
    result = api.compare(config, output=folder, manager=manager)
    assert (result.status, result.failed) == ("finished", {})
    assert [(row.name, row.value) for row in result.table.rows] == [
        ("shortcut-std-0.1", 0.1),
        ("shortcut-std-0.5", 0.5),
        ("freeflow", None),
    ]
    assert [run for run in statuses(folder) if "freeflow" in run] == ["freeflow-seed0"]
    configs = [yaml.safe_load((folder / f"shortcut-std-{v}-seed0" / "config.yaml").read_text()) for v in (0.1, 0.5)]
    assert [config["source"]["std"] for config in configs] == [0.1, 0.5]
    assert result.files["plot"].name == "sweep.png"
    assert len([row for run, row in watcher.scored if row == "teacher"]) == 1


def test_a_sweep_that_changes_nothing_is_refused(watched, folder):
    manager, _ = watched
    with pytest.raises(ConfigError, match=r"Unknown setting 'source\.std' of the source 'prior'"):
        comparison(manager, "freeflow", sweep="source.std=0.1,0.3")
    config = comparison(manager, "freeflow", sweep="source.std=0.1,0.3", assignments=("source=gaussian-mixture",))
    with pytest.raises(ConfigError, match=r"sweep of source\.std changes none of these runs"):
        api.compare(config, output=folder, manager=manager)


SECTION = {"budget": "forwards=1000"}


def without(first, folder, run):
    """A copy of a finished comparison in which ``run`` was never begun."""
    shutil.copytree(first.folder, folder)
    shutil.rmtree(folder / run)


def test_a_process_that_comes_second_takes_what_nobody_has(whole, watched, folder):
    first, (manager, watcher) = whole[0], watched
    without(first, folder, NAMES[1])
    shutil.rmtree(folder / NAMES[2])
    config = comparison(manager, "freeflow", "shortcut", **SECTION)
    locks = folder / ".locks"
    with FileLock(locks / "lead"), FileLock(locks / f"run-{NAMES[1]}"):
        helped = api.compare(config, output=folder, manager=manager)
        assert (helped.status, watcher.started) == ("shared", [NAMES[2]])
        assert [row.status for row in helped.table.rows] == ["2 of 2", "1 of 2"]
    led = api.compare(config, output=folder, manager=manager)
    assert watcher.started == [NAMES[2], "gaussian-mixture", NAMES[1]]
    assert led.status == "finished"
    for ours, theirs in zip(led.table.rows, first.table.rows, strict=True):
        assert (ours.status, ours.scores, ours.curve) == ("2 of 2", theirs.scores, theirs.curve)


def test_the_leading_process_waits_for_the_others_and_takes_the_run_of_one_that_was_killed(
    whole, watched, folder, monkeypatch
):
    first, (manager, watcher) = whole[0], watched
    without(first, folder, NAMES[0])
    claim = FileLock(folder / ".locks" / f"run-{NAMES[0]}")
    claim.acquire()
    monkeypatch.setattr(runner.time, "sleep", lambda seconds: claim.release())  # as the system does for the killed
    result = api.compare(comparison(manager, "freeflow", "shortcut", **SECTION), output=folder, manager=manager)
    assert (result.status, watcher.started) == ("finished", ["gaussian-mixture", NAMES[0]])
    assert [row.status for row in result.table.rows] == ["2 of 2"] * 2


@pytest.mark.long
def test_what_failed_in_another_process_is_told_and_not_tried_twice(watched, folder, tmp_path):
    manager, watcher = watched
    config = troubled(manager, "troubled", "freeflow", once=tmp_path / "done")
    first = api.compare(config, output=folder, manager=manager)
    assert list(first.failed) == ["troubled-seed0"]
    with FileLock(folder / ".locks" / "lead"):
        assert api.compare(config, output=folder, manager=manager).failed == first.failed
    watcher.started.clear()
    assert api.compare(config, output=folder, manager=manager).failed == {}, "a new start tries again"
    assert watcher.started == ["gaussian-mixture", "troubled-seed0"]


def test_a_launcher_of_processes_is_refused(watched, folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="not started by torchrun"):
        api.compare(comparison(watched[0], "freeflow"), output=folder, manager=watched[0])


def test_a_run_of_a_comparison_is_resumed_by_itself_too(watched, folder, tmp_path):
    manager, watcher = watched
    config = troubled(manager, "troubled", once=tmp_path / "done", action="interrupt")
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
    config = comparison(manager, "freeflow", seeds=1)
    Manifest.open(folder, config, []).write([])
    (folder / "freeflow-seed0").mkdir()
    (folder / "freeflow-seed0" / ".config.yaml.partial").write_text("nam")
    assert api.compare(config, output=folder, manager=manager).status == "finished"
