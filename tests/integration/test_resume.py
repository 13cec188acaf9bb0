"""10 steps are 5 steps, a restart, and 5 steps: bit for bit on the CPU."""

import json
import signal

import pytest
import torch
from objective_helpers import with_normalised
from run_helpers import TINY

from freeflow_core import api
from freeflow_core.errors import CheckpointError, ConfigError, FreeflowError, Interrupted, NonFiniteError
from freeflow_core.interfaces.journal import Journal
from freeflow_core.network_file import load_tensors
from freeflow_core.plugin import Manager, hookimpl


def checkpoint(folder):
    path = max((folder / "checkpoints").iterdir())
    return {f.name: load_tensors(f)[0] for f in sorted(path.glob("*.safetensors"))}, path


def assert_identical(first, second):
    (a, _), (b, _) = checkpoint(first), checkpoint(second)
    assert a.keys() == b.keys()
    for name in a.keys() - {"random.safetensors"}:
        assert a[name].keys() == b[name].keys()
        for key in a[name]:
            assert torch.equal(a[name][key], b[name][key]), f"{name} {key}"


def test_resume_is_bit_identical(tiny, tmp_path, manager):
    whole = api.distill(tiny(), output=tmp_path / "whole", manager=manager)
    stopped = api.distill(tiny("training.stop_at_images=80"), output=tmp_path / "parts", manager=manager)
    assert stopped.status == "stopped"
    resumed = api.distill(tiny(), output=tmp_path / "parts", resume=True, manager=manager)
    assert (whole.status, resumed.status) == ("finished", "finished")
    assert_identical(whole.folder, resumed.folder)
    lines = [json.loads(line)["images"] for line in (resumed.folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == sorted(lines)
    assert lines[-1] == 160


def test_resume_from_data_is_bit_identical(tiny, tmp_path, manager):
    over = {
        "command": "pretrain",
        "teacher": None,
        "source": "digits",
        "student": {"name": "velocity-transformer", "width": 16, "depth": 1, "num_heads": 2, "patch_size": 4},
        "objective": {"name": "flow-matching"},
    }
    whole = api.pretrain(tiny(**over), output=tmp_path / "whole", manager=manager)
    api.pretrain(tiny("training.stop_at_images=96", **over), output=tmp_path / "p", manager=manager)
    parts = api.pretrain(tiny(**over), output=tmp_path / "p", resume=True, manager=manager)
    assert_identical(whole.folder, parts.folder)


@pytest.mark.parametrize("objective", ["signal", "weighted", "raw", "normalised"])
def test_accumulation_changes_nothing_but_rounding(tmp_path, objective):
    """Clipped, and interrupted with the micro-batches of a step done; of all that is kept, by a resumed run too."""
    manager = with_normalised()
    chosen = {"name": "normalised"} if objective == "normalised" else {"name": "freeflow", "balance": objective}

    def run(folder, *settings, resume=False):
        exact = ("runtime.precision=float64", "training.optimizer.clip_norm=0.1", *settings)
        overrides = {**TINY, "objective": chosen}
        config = api.resolve_config("distill", overrides=overrides, settings=exact, manager=manager)
        return api.distill(config, output=folder, resume=resume, manager=manager).folder

    one = run(tmp_path / "one")
    run(tmp_path / "four", "training.accumulation=4", "training.stop_at_images=48")
    four = run(tmp_path / "four", "training.accumulation=2", resume=True)
    (a, _), (b, _) = checkpoint(one), checkpoint(four)
    for file in a.keys() - {"random.safetensors"}:
        for key, value in a[file].items():
            assert torch.allclose(value, b[file][key], rtol=1e-9, atol=1e-10), f"{file} {key}"
    metrics = [json.loads((f / "metrics.jsonl").read_text().splitlines()[-1]) for f in (one, four)]
    for name in metrics[0]:
        if name.startswith("student/") and name.endswith(("loss", "norm", "balance", "residual")):
            assert metrics[1][name] == pytest.approx(metrics[0][name], rel=1e-5), name


def test_a_step_in_micro_batches_that_is_not_finite_is_skipped_and_named(tiny, output, manager):
    settings = ("training.optimizer.learning_rate=1e30", "training.accumulation=2", "logging.every_images=16")
    with pytest.raises(NonFiniteError, match="the first to give it was"):
        api.distill(tiny(*settings), output=output, manager=manager)


def test_a_changed_configuration_is_refused_but_logging_may_change(tiny, output, manager):
    api.distill(tiny("training.stop_at_images=32"), output=output, manager=manager)
    with pytest.raises(ConfigError, match=r"objective\.weight_power: 0\.5 -> 1\.0"):
        api.distill(tiny("objective.weight_power=1.0"), output=output, resume=True, manager=manager)
    api.distill(tiny("logging.every_images=64"), output=output, resume=True, manager=manager)


def test_folders_of_other_runs_are_left_alone(tiny, output, manager):
    api.distill(tiny("training.images=16"), output=output, manager=manager)
    before = sorted(output.rglob("*"))
    with pytest.raises(ConfigError, match=r"already holds a run.*--resume"):
        api.distill(tiny(), output=output, manager=manager)
    assert sorted(output.rglob("*")) == before
    with pytest.raises(ConfigError, match="found no run"):
        api.distill(tiny(), output=output.parent / "none", resume=True, manager=manager)


def test_an_interrupt_saves_and_the_rest_is_identical(tiny, tmp_path, manager):
    class Interrupts:
        """Presses Ctrl-C once, in the middle."""

        @hookimpl
        def freeflow_step_finished(self, run, progress, metrics):
            if progress.images == 64 and not run.resumed:
                signal.raise_signal(signal.SIGINT)

    whole = api.distill(tiny(), output=tmp_path / "whole", manager=manager)
    watched = Manager.load()
    watched.register(Interrupts(), "interrupts")
    with pytest.raises(Interrupted, match="--resume"):
        api.distill(tiny(), output=tmp_path / "cut", manager=watched)
    assert json.loads((tmp_path / "cut" / "run.json").read_text())["status"] == "interrupted"
    rest = api.distill(tiny(), output=tmp_path / "cut", resume=True, manager=manager)
    assert_identical(whole.folder, rest.folder)


def test_a_full_disk_keeps_the_last_good_checkpoint(tiny, output, manager, monkeypatch):
    from freeflow_core import network_file

    real, calls = network_file.save_file, []

    def fills_up(tensors, path, metadata=None):
        calls.append(path)
        if "images-000000000096" in str(path) or ".partial-000000000096" in str(path):
            raise OSError(28, "No space left on device")
        real(tensors, path, metadata=metadata)

    monkeypatch.setattr(network_file, "save_file", fills_up)
    with pytest.raises(CheckpointError, match=r"No space left.*last good one is .*images-000000000048"):
        api.distill(tiny("checkpointing.every_images=48"), output=output, manager=manager)
    assert [p.name for p in sorted((output / "checkpoints").iterdir())] == ["images-000000000048"]
    monkeypatch.undo()
    again = api.distill(tiny("checkpointing.every_images=48"), output=output, resume=True, manager=manager)
    assert again.status == "finished"


def test_an_end_that_cannot_be_noted_is_no_good_end(tiny, output, manager, monkeypatch):
    real = Journal.write_status

    def fills_up(self, **values):
        if values.get("status") == "finished":
            raise OSError(28, "No space left on device")
        real(self, **values)

    monkeypatch.setattr(Journal, "write_status", fills_up)
    with pytest.raises(FreeflowError, match=r"run\.json.*No space left.*--resume"):
        api.distill(tiny(), output=output, manager=manager)
    monkeypatch.undo()
    assert api.distill(tiny(), output=output, resume=True, manager=manager).status == "finished"
    assert Journal(output).status()["status"] == "finished"


def test_old_checkpoints_are_removed(tiny, output, manager):
    api.distill(tiny("checkpointing.every_images=32", "checkpointing.keep=2"), output=output, manager=manager)
    names = [p.name for p in sorted((output / "checkpoints").iterdir())]
    assert names == ["images-000000000128", "images-000000000160"]
