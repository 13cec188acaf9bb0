"""What `distill` and `pretrain` make of a configuration, a preset and settings."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from freeflow_core import api
from freeflow_core.api import training
from freeflow_core.config.compare import objective_config
from freeflow_core.errors import ConfigError
from freeflow_core.plugin import Registry


@pytest.fixture
def started(monkeypatch):
    """Configurations of the runs that would have been started."""
    found = []

    class Run:
        def __init__(self, config, command, manager, **rest):
            found.append((command, config))

        def execute(self):
            return SimpleNamespace(folder=Path("runs/x"), status="finished")

    monkeypatch.setattr(training, "Run", Run)
    return found


def test_settings_change_a_configuration(manager, started):
    config = api.resolve_config("pretrain", preset="digits", manager=manager)
    api.pretrain(config, settings=iter(["training.batch_size=16", "student.depth=2"]), manager=manager)
    (command, changed) = started[0]
    assert command == "pretrain"
    assert (changed.training.batch_size, changed.student.options.depth) == (16, 2)
    assert changed.training.images == config.training.images


def test_a_configuration_and_a_preset_exclude_each_other(manager, started):
    config = api.resolve_config("distill", preset="digits", manager=manager)
    with pytest.raises(ConfigError, match="also the preset 'digits-guided', which would replace it"):
        api.distill(config, preset="digits-guided", manager=manager)
    assert not started


def test_without_either_it_is_the_default_preset(manager, started):
    api.distill(settings=["seed=7"], manager=manager)
    assert (started[0][1].name, started[0][1].seed) == ("mnist-freeflow", 7)


def test_parts_and_sections_are_laid_over_the_preset_of_the_teacher(manager, started):
    api.distill(
        teacher="digits",
        objective={"name": "shortcut", "base_steps": 16},
        training={"images": 640},
        settings=["training.batch_size=32"],
        manager=manager,
    )
    api.distill(teacher="gaussian-mixture", student="mlp", manager=manager)
    api.pretrain(source="mnist", manager=manager)
    digits, other, pretrained = (config for _, config in started)
    assert (digits.teacher.name, digits.objective.options.base_steps) == ("digits", 16)
    assert (digits.training.images, digits.training.batch_size) == (640, 32)
    assert (
        digits.training.optimizer == api.resolve_config("distill", preset="digits", manager=manager).training.optimizer
    )
    assert (other.teacher.name, other.student.name, other.evaluation.evaluators) == ("gaussian-mixture", "mlp", None)
    assert (pretrained.source.name, pretrained.student.name) == ("mnist", "velocity-transformer")


def test_parts_change_a_configuration(manager, started):
    config = api.resolve_config("distill", preset="digits", manager=manager)
    api.distill(config, seed=7, student={"name": "transformer", "depth": 1}, manager=manager)
    changed = started[0][1]
    assert (changed.seed, changed.student.options.depth) == (7, 1)
    assert changed.objective == config.objective
    with pytest.raises(ConfigError, match="imagess"):
        api.distill(config, training={"imagess": 1}, manager=manager)


def test_the_preset_is_known_and_is_no_setting(manager, started, tmp_path):
    config = api.resolve_config("distill", preset="digits", manager=manager)
    assert config.preset == "digits"
    assert "preset" not in config.model_dump()
    file = tmp_path / "run.yaml"
    file.write_text("preset: digits\nseed: 3\n")
    assert api.resolve_config("distill", config_file=file, manager=manager).preset == "digits"
    api.distill(config, training={"images": 640}, manager=manager)
    api.distill(teacher="digits", manager=manager)
    assert [config.preset for _, config in started] == ["digits", "digits"]
    with pytest.raises(ConfigError, match="Unknown setting 'preset'"):
        api.distill(settings=["preset=digits"], manager=manager)


def test_compare_takes_mappings(manager, monkeypatch, tmp_path):
    taken = []

    class Comparison:
        def __init__(self, config, manager, folder):
            taken.append((config, folder))

        def execute(self):
            return None

    monkeypatch.setattr(training, "Comparison", Comparison)
    api.compare(
        teacher={"name": "digits"},
        objectives=["freeflow", "shortcut"],
        source="digits",
        training={"batch_size": 32},
        settings_for={"freeflow": {"objective": {"weight_power": 1.0}}},
        budget={"images": 640},
        sweep={"training.optimizer.learning_rate": [1e-4, 1e-3]},
        seeds=2,
        seed=5,
        output=str(tmp_path),
        manager=manager,
    )
    ((config, folder),) = taken
    run = objective_config(Registry(manager), config, "freeflow", 1e-3)
    assert (run.training.batch_size, run.training.optimizer.learning_rate, run.seed) == (32, 1e-3, 5)
    assert run.objective.options.weight_power == 1.0
    assert objective_config(Registry(manager), config, "shortcut", 1e-4).objective.name == "shortcut"
    assert (str(config.comparison.budget), config.comparison.seeds, folder) == ("images=640", 2, tmp_path)
    with pytest.raises(ConfigError):
        api.compare(config, teacher="digits", manager=manager)
