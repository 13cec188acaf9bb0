"""A comparison's configuration: layers, checks, and the run of each objective."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from freeflow_core.config.compare import Budget, SweepConfig, load_compare_config, objective_config
from freeflow_core.errors import ConfigError

DATA = {"source": {"name": "digits"}}


@pytest.fixture
def load(registry):
    def make(*objectives, preset="digits", comparison=None, overrides=None, **more):
        section = {"objectives": objectives or None, **(comparison or {})}
        return load_compare_config(registry, preset=preset, overrides=overrides or DATA, comparison=section, **more)

    return make


@pytest.fixture
def run(registry):
    """The resolved run of one objective."""
    return lambda config, objective, value=None: objective_config(registry, config, objective, value)


@pytest.mark.parametrize(
    ("given", "kind", "amount", "shown"),
    [
        ("images=57600", "images", 57600, "images=57600"),
        ("forwards=1e6", "forwards", 1e6, "forwards=1000000"),
        (" images = 2.5e3", "images", 2500, "images=2500"),
        ("images=57_600", "images", 57600, "images=57600"),
        ({"forwards": 100}, "forwards", 100, "forwards=100"),
    ],
)
def test_a_budget_is_read_and_written(given, kind, amount, shown):
    budget = Budget.model_validate(given)
    assert (budget.kind, budget.amount, str(budget)) == (kind, amount, shown)


@given(st.sampled_from(["images", "forwards"]), st.integers(1, 10**12))
def test_a_budget_survives_its_own_text(kind, amount):
    budget = Budget.model_validate(f"{kind}={amount}")
    assert Budget.model_validate(str(budget)) == budget


@pytest.mark.parametrize("wrong", ["images", "images=", "hours=3", "images=many", "seconds=5", "forwards=-1", "=5"])
def test_a_wrong_budget_is_refused(wrong, load):
    with pytest.raises(ValidationError):
        Budget.model_validate(wrong)
    with pytest.raises(ConfigError, match=r"compare\.budget"):
        load("freeflow", comparison={"budget": wrong})


def test_sweeps_are_read_as_yaml_lists():
    sweep = SweepConfig.model_validate("source.augment_strength=0,0.5,1")
    assert (sweep.setting, sweep.values) == ("source.augment_strength", (0, 0.5, 1))
    assert SweepConfig.model_validate("training.optimizer.learning_rate=1e-4,1e-3").values == (1e-4, 1e-3)
    assert SweepConfig.model_validate("student.initialise=teacher,random").values == ("teacher", "random")
    for wrong in ("a.b", "a.b=", "=1,2", "a.b=[1"):
        with pytest.raises(ValidationError):
            SweepConfig.model_validate(wrong)


@pytest.mark.parametrize(
    ("sweep", "reason"),
    [
        ("seed=1,2", "--seeds"),
        ("objective=freeflow,shortcut", "--objectives"),
        ("training.images=1,2", "budget"),
        ("source.seed=1", "at least 2"),
        ("source.seed=1,1", "differ"),
    ],
)
def test_what_cannot_be_swept_is_said(load, sweep, reason):
    with pytest.raises(ConfigError, match=reason):
        load("freeflow", comparison={"sweep": sweep})


def test_settings_for_all_and_for_one(load, run):
    config = load(
        "freeflow",
        "shortcut",
        assignments=["training.batch_size=32", "objective.guidance_max=2"],
        assignments_for=["shortcut:training.batch_size=16", "shortcut:objective.velocity=teacher"],
    )
    freeflow, shortcut = run(config, "freeflow"), run(config, "shortcut")
    assert (freeflow.training.batch_size, shortcut.training.batch_size) == (32, 16)
    assert freeflow.objective.options.guidance_max == shortcut.objective.options.guidance_max == 2


def test_guidance_is_part_of_the_task_and_other_options_of_the_method(load, run):
    config = load("freeflow", "shortcut", preset="digits-guided")
    shortcut = run(config, "shortcut").objective.options
    assert (shortcut.guidance_min, shortcut.guidance_max) == (2.5, 2.5)
    assert run(config, "freeflow").objective.options.correction_guidance_scale == 0.34
    assert run(config, "shortcut").evaluation.guidance_weight == 2.5


def test_a_file_holds_both_parts_and_the_command_line_wins(load, run, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(
        "preset: digits\nname: filed\nsource: digits\ntraining: {batch_size: 32}\n"
        "compare:\n  objectives: [freeflow, shortcut]\n  seeds: 2\n  budget: images=640\n"
        "  settings_for: {shortcut: {training: {batch_size: 16}, seed: 7}}\n"
    )
    config = load(
        file=file,
        preset=None,
        overrides={},
        comparison={"seeds": 5},
        assignments_for=["shortcut:training.batch_size=8"],
        assignments=["compare.score=fd_data"],
    )
    assert config.name == "filed"
    assert config.comparison.objectives == ("freeflow", "shortcut")
    assert (config.comparison.seeds, str(config.comparison.budget)) == (5, "images=640")
    assert config.comparison.score == "fd_data"
    assert (run(config, "shortcut").training.batch_size, run(config, "shortcut").seed) == (8, 7)
    assert run(config, "freeflow").training.batch_size == 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objectives": ()}, "name the objectives"),
        ({"objectives": ("freeflow", "freeflow")}, "named twice"),
        ({"objectives": ("freflow",)}, "Did you mean 'freeflow'"),
        ({"assignments_for": ["freeflow:objective=shortcut"]}, "--objectives"),
        ({"assignments_for": ["shortcut:seed=1"]}, "not among the objectives"),
        ({"assignments": ["training.stop_at_images=5"]}, "--budget"),
        ({"assignments": ["evaluation.evaluators=[]"]}, "at least one evaluator"),
        ({"assignments": ["training.imagse=5"]}, "In the runs of freeflow.*Did you mean 'images'"),
        ({"comparison": {"seed": 1}}, "Did you mean 'seeds'"),
        ({"preset": "digitz"}, "Did you mean 'digits'"),
        ({"assignments": ["name=a/b"]}, "folder"),
    ],
)
def test_mistakes_are_named(registry, arguments, message):
    arguments = {"objectives": ("freeflow",), "preset": "digits", "comparison": {}, **arguments}
    section = {"objectives": arguments.pop("objectives"), **arguments.pop("comparison")}
    with pytest.raises(ConfigError, match=message):
        load_compare_config(registry, comparison=section, **arguments)


def test_every_preset_of_a_comparison_resolves(registry):
    assert "mismatch" in registry.presets("compare")
    for name, preset in registry.presets("compare").items():
        config = load_compare_config(registry, preset=name)
        assert preset.summary
        assert config.comparison.objectives
        for value in config.values:
            for objective in config.comparison.objectives:
                assert objective_config(registry, config, objective, value).training.images


def test_the_swept_value_comes_last(load, run):
    config = load("shortcut", assignments=["training.batch_size=32"], comparison={"sweep": "training.batch_size=8,16"})
    assert [run(config, "shortcut", value).training.batch_size for value in config.values] == [8, 16]


def test_the_documented_file_is_a_comparison(registry, tmp_path):
    page = Path(__file__).parents[2] / "docs" / "how-to" / "compare.md"
    (text,) = re.findall(
        r'^```yml title="my-comparison\.yml"\n(.*?)^```$', page.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    file = tmp_path / "my-comparison.yml"
    file.write_text(text, "utf-8")
    config = load_compare_config(registry, file=file)
    assert (config.name, config.comparison.objectives) == ("my-comparison", ("shortcut", "eulerian", "freeflow"))
    assert objective_config(registry, config, "eulerian").training.optimizer.learning_rate == 5e-4
    assert objective_config(registry, config, "freeflow").training.batch_size == 128


def test_a_choice_of_objectives_leaves_the_settings_of_the_others_out(registry, tmp_path):
    file = tmp_path / "comparison.yaml"
    file.write_text(
        "preset: digits\ncompare:\n  objectives: [freeflow, shortcut]\n  settings_for:\n"
        "    shortcut: {training: {batch_size: 32}}\n    freeflow: {training: {batch_size: 128}}\n"
    )
    config = load_compare_config(registry, file=file, comparison={"objectives": ["freeflow"]})
    assert config.comparison.settings_for == {"freeflow": {"training": {"batch_size": 128}}}
    with pytest.raises(ConfigError, match="not among the objectives"):
        load_compare_config(
            registry,
            file=file,
            comparison={"objectives": ["freeflow"]},
            assignments_for=["shortcut:training.batch_size=16"],
        )


@pytest.mark.parametrize("sweep", [{"training.batch_size": [16, 32]}, "training.batch_size=16,32"])
def test_a_sweep_is_a_mapping_or_a_text(sweep, load):
    config = load("freeflow", comparison={"sweep": sweep})
    assert (config.comparison.sweep.setting, config.values) == ("training.batch_size", (16, 32))


def test_runs_know_their_preset(load, run, registry, tmp_path):
    assert run(load("freeflow"), "freeflow").preset == "digits"
    assert (
        run(load("freeflow", preset="mnist", overrides={"teacher": {"name": "digits"}}), "freeflow").preset == "mnist"
    )
    file = tmp_path / "comparison.yaml"
    file.write_text("preset: digits\ncompare: {objectives: [freeflow]}\n")
    assert load_compare_config(registry, file=file).preset == "digits"
