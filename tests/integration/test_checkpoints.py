"""A damaged checkpoint is told from a whole one, whatever happened to it; a run then goes on from the newest whole one."""

import json
import logging
import re
import shutil
import subprocess

import pytest
from test_resume import assert_identical

from freeflow_core import api
from freeflow_core.engine.checkpoint import Checkpoints, damage
from freeflow_core.errors import CheckpointError, FreeflowError
from freeflow_core.plugin import Manager, hookimpl


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES = {"flipped": flip, "truncated": truncate, "deleted": lambda path: path.unlink()}


@pytest.fixture(scope="module")
def stopped(tiny, tmp_path_factory, manager):
    """A run that was stopped, with checkpoints at images 48 and 96."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    settings = ("checkpointing.every_images=48", "training.stop_at_images=96")
    return api.distill(tiny(*settings), output=folder, manager=manager).folder


@pytest.fixture
def copied(stopped, tmp_path):
    """A copy of it, with its newest checkpoint."""
    shutil.copytree(stopped, tmp_path / "copy")
    return tmp_path / "copy", tmp_path / "copy" / "checkpoints" / "images-000000000096"


@pytest.mark.parametrize("kind", DAMAGES)
def test_every_damaged_file_is_noticed(stopped, tmp_path, kind):
    whole = stopped / "checkpoints" / "images-000000000096"
    assert damage(whole) is None
    names = [path.name for path in whole.iterdir()]
    assert {"state.json", "student.safetensors", "student.optimizer.safetensors"} < set(names)
    for name in names:
        shutil.copytree(whole, tmp_path / name)
        DAMAGES[kind](tmp_path / name / name)
        assert damage(tmp_path / name) is not None, name


def test_the_newest_whole_checkpoint_takes_the_place_of_a_damaged_one(copied, tiny, tmp_path, manager, caplog):
    folder, newest = copied
    flip(newest / "student.safetensors")
    with pytest.raises(CheckpointError, match=r"images-000000000096.*student\.safetensors"):
        api.distill(tiny("checkpointing.fall_back=false"), output=folder, resume=True, manager=manager)
    assert newest.is_dir()
    with caplog.at_level(logging.WARNING, "freeflow"):
        resumed = api.distill(tiny(), output=folder, resume=True, manager=manager)
    assert "student.safetensors" in caplog.text
    assert (newest.parent / "damaged-images-000000000096").is_dir()
    whole = api.distill(tiny(), output=tmp_path / "whole", manager=manager)
    assert_identical(whole.folder, resumed.folder)


def test_without_a_whole_checkpoint_nothing_begins_anew(copied, tiny, manager):
    folder, newest = copied
    for path in newest.parent.iterdir():
        (path / "state.json").write_text("{}")
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match="whole"):
        api.distill(tiny(), output=folder, resume=True, manager=manager)
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert len(list(newest.parent.iterdir())) == 2


def test_a_run_without_digests_is_refused_until_its_user_vouches_for_it(copied, tiny, tmp_path, manager):
    """As versions wrote them that knew no digests: nothing tells such a checkpoint from one that lost a file."""
    folder, newest = copied
    for path in newest.parent.iterdir():
        (path / "SHA256SUMS").unlink()
    with pytest.raises(CheckpointError) as refused:
        api.distill(tiny(), output=folder, resume=True, manager=manager)
    for path in newest.parent.iterdir():
        command = re.search(rf"{path.name}: .*?run in it: (sha256sum .*?)\)", str(refused.value))
        assert subprocess.run(command[1], cwd=path, shell=True).returncode == 0
    resumed = api.distill(tiny(), output=folder, resume=True, manager=manager)
    assert_identical(api.distill(tiny(), output=tmp_path / "whole", manager=manager).folder, resumed.folder)


def test_a_removal_that_was_killed_leaves_nothing_that_has_a_name(copied, monkeypatch, tiny, manager):
    folder, newest = copied

    def killed(path, ignore_errors=False):
        (path / "state.json").unlink(missing_ok=True)
        raise KeyboardInterrupt

    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoints._remove(newest)
    assert [path.name for path in checkpoints.all()] == ["images-000000000048"]
    assert api.distill(tiny(), output=folder, resume=True, manager=manager).status == "finished"
    assert not list(newest.parent.glob(".*"))


@pytest.mark.parametrize("description", ["{}", "[]", '{"images": "many", "step": 1, "updates": {}}'])
def test_a_description_of_no_use_is_an_error_that_names_it(copied, tiny, description):
    _, newest = copied
    (newest / "state.json").write_text(description)
    with pytest.raises(CheckpointError, match=r"state\.json"):
        Checkpoints(newest.parent, 1).load(newest, None)


def test_a_checkpoint_of_other_networks_is_an_error_that_names_it(copied, tiny, tmp_path, manager):
    folder, newest = copied
    other = api.distill(tiny("student.width=8", "training.stop_at_images=96"), output=tmp_path / "o", manager=manager)
    shutil.rmtree(newest)
    shutil.copytree(other.folder / "checkpoints" / newest.name, newest)
    with pytest.raises(CheckpointError, match=re.escape(str(newest))):
        api.distill(tiny(), output=folder, resume=True, manager=manager)


def test_a_run_whose_folder_was_removed_does_not_bring_it_back(tiny, tmp_path):
    class Removes:
        @hookimpl
        def freeflow_step_finished(self, run, progress, metrics):
            shutil.rmtree(run.folder)

    watched = Manager.load()
    watched.register(Removes(), "removes")
    with pytest.raises(FreeflowError):
        api.distill(tiny("checkpointing.every_images=32"), output=tmp_path / "gone", manager=watched)
    assert not (tmp_path / "gone").exists()


def test_half_written_files_of_a_killed_process_are_removed(copied, tiny, manager):
    folder, newest = copied
    left = [folder / ".run.json.0a1b2c3d.partial", folder / "samples" / ".images-000000000096.png.0a1b2c3d.partial"]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_text("{")
    left.append(newest.parent / ".partial-000000000112")
    left[-1].mkdir()
    api.distill(tiny(), output=folder, resume=True, manager=manager)
    assert not any(path.exists() for path in left)
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
