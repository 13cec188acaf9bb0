"""One process at a time writes to a run folder, and a start that was killed takes no place."""

import json
import re

import pytest
from run_helpers import processes

from freeflow_core import api
from freeflow_core.config import to_yaml
from freeflow_core.engine.run_folder import RunFolder
from freeflow_core.errors import ConfigError
from freeflow_core.plugin import Manager, hookimpl


class During:
    """Does something in the middle of a run."""

    def __init__(self, work):
        self.work = work

    @hookimpl
    def freeflow_checkpoint_saved(self, run, progress, path):
        self.work(run.folder)


def during(work):
    manager = Manager.load()
    manager.register(During(work), "during")
    return manager


def test_a_second_resume_is_refused_while_the_first_is_at_work(tiny, tmp_path, manager):
    seen = []

    def resume(folder):
        before = (folder / "metrics.jsonl").read_bytes()
        with pytest.raises(ConfigError, match=r"process \d+ on ") as refused:
            api.distill(tiny(), output=folder, resume=True, manager=manager)
        assert (folder / "metrics.jsonl").read_bytes() == before
        assert json.loads((folder / "run.json").read_text())["status"] == "running"
        seen.append(refused.value)

    api.distill(tiny("training.stop_at_images=64"), output=tmp_path / "run", manager=during(resume))
    assert len(seen) == 1
    assert api.distill(tiny(), output=tmp_path / "run", resume=True, manager=manager).status == "finished"


def test_a_killed_owner_holds_no_lock(tiny, tmp_path, manager):
    folder, config = tmp_path / "run", tmp_path / "tiny.yaml"
    config.write_text(to_yaml(tiny("training.stop_at_images=32")))
    killed = (
        "import os, sys\n"
        "from freeflow_core.engine.checkpoint import Checkpoints\n"
        "Checkpoints.save = lambda *args, **options: os.kill(os.getpid(), 9)\n"
        "from freeflow_cli.main import main\n"
        "main()\n"
    )
    process = processes(1, "-c", killed, "distill", "--config", config, "--output", folder)
    process.communicate(timeout=600)
    assert process.returncode == -9
    assert json.loads((folder / "run.json").read_text())["status"] == "running"
    assert api.distill(tiny(), output=folder, resume=True, manager=manager).status == "finished"


def test_two_starts_without_a_name_take_two_folders(tiny, tmp_path, manager, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = RunFolder.start(tiny(), "distill", None)
    (first.path / "config.yaml").unlink()  # as seen by a process that looks a moment earlier
    second = RunFolder.start(tiny(), "distill", None)
    assert first.path != second.path
    first.release()
    second.release()


def test_a_start_that_was_killed_takes_no_place(tiny, tmp_path, manager):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (".lock", "run.json", ".config.yaml.0a1b2c3d.partial"):
        (folder / name).write_text("")
    assert api.distill(tiny("training.images=16"), output=folder, manager=manager).status == "finished"
    assert not list(folder.glob(".*.partial"))


@pytest.mark.parametrize("text", ["", "a: [", "- 1", "[" * 5000], ids=["empty", "broken", "list", "deep"])
def test_a_configuration_of_no_use_in_a_run_folder_is_named(tiny, tmp_path, manager, text):
    folder = api.distill(tiny("training.stop_at_images=16"), output=tmp_path / "run", manager=manager).folder
    (folder / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        api.distill(tiny(), output=folder, resume=True, manager=manager)


def test_trackers_are_given_every_picture_that_the_report_links(tmp_path, manager):
    config = api.resolve_config("distill", preset="digits", settings=[
        "training.images=64", "samples.every_images=64", "evaluation.enabled=false", "trackers=[]",
    ])  # fmt: skip
    folder = api.distill(config, output=tmp_path / "run", manager=manager).folder
    linked = re.findall(r"!\[[^]]*\]\(([^)]+)\)", (folder / "report.md").read_text("utf-8"))
    records = [json.loads(line) for line in (folder / "artifacts.jsonl").read_text("utf-8").splitlines()]
    assert linked
    assert set(linked) <= {record["path"] for record in records if "picture" not in record}
