"""Layers merge in order; unknown keys and names are refused with a suggestion."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from run_helpers import TINY

from freeflow_core.config import load_run_config, to_yaml
from freeflow_core.config.load import (
    changed_settings,
    differences,
    lay_settings,
    merge,
    parse_assignment,
    parse_yaml,
    split_settings,
)
from freeflow_core.errors import ConfigError

BASE = {
    "teacher": "gaussian-mixture",
    "student": "mlp",
    "objective": {"name": "freeflow", "weight_power": 0.5},
    "training": {"images": 640},
}


def load(registry, *assignments, **overrides):
    return load_run_config(registry, "distill", overrides={**BASE, **overrides}, assignments=assignments)


def test_defaults_are_written_out_and_read_back(registry, tmp_path):
    config = load(registry)
    assert config.objective.options.weight_power == 0.5
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(config))
    again = load_run_config(registry, "distill", file=file)
    assert again == config
    assert "weight_epsilon" in yaml.safe_load(file.read_text())["objective"]


def test_order_is_preset_then_file_then_overrides_then_assignments(registry, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("seed: 5\ntraining: {batch_size: 32}\nname: from-file\n")
    config = load_run_config(
        registry, "distill", preset="digits", file=file, overrides={"seed": 6}, assignments=["training.batch_size=16"]
    )
    assert (config.seed, config.training.batch_size, config.name) == (6, 16, "from-file")
    assert config.teacher.name == "digits"


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("training.batch_sise=8", "Did you mean 'batch_size'"),
        ("objective.weight_powr=1", "Did you mean 'weight_power'"),
        ("training.batch_size=many", "training.batch_size"),
        ("training.batch_size=0", "greater than 0"),
        ("nonsense", "is not of the form"),
        ("training.accumulation=3", "multiple"),
        ("training.optimizer.learning_rate=.inf", "finite"),
    ],
)
def test_bad_settings_are_named(registry, assignment, expected):
    with pytest.raises(ConfigError, match=expected.replace("(", r"\(")):
        load(registry, assignment)


def test_another_component_drops_the_old_ones_options():
    merged = merge({"objective": {"name": "a", "k": 1}}, {"objective": {"name": "b"}})
    assert merged == {"objective": {"name": "b"}}
    assert merge({"objective": {"name": "a", "k": 1}}, {"objective": {"k": 2}})["objective"] == {"name": "a", "k": 2}
    assert merge({"objective": {"name": "a", "k": 1}}, {"objective": "a"})["objective"] == {"name": "a", "k": 1}


def test_another_objective_keeps_the_guidance_of_the_preset(registry):
    def options(*assignments, **kwargs):
        return load_run_config(registry, "distill", **kwargs, assignments=assignments).objective.options

    kept = options(preset="mnist-guided", overrides={"objective": "shortcut"})
    assert (kept.guidance_min, kept.guidance_max, kept.guidance_interval) == (1.5, 1.5, (0.0, 0.75))
    assert options("objective=shortcut", "objective.guidance_max=2", preset="mnist-guided").guidance_max == 2
    own = options(preset="mnist-guided", overrides={"objective": {"name": "shortcut", "guidance_min": 1.25}})
    assert (own.guidance_min, own.guidance_max) == (1.25, 1.5)


def test_settings_are_laid_one_after_the_other():
    values = {"sampler": {"name": "heun", "steps": 3}, "codec": {}}
    laid = lay_settings(values, ["sampler.steps=4", "codec.tiling=true", "sampler.steps=5"], closed=True)
    assert laid == {"sampler": {"name": "heun", "steps": 5}, "codec": {"tiling": True}}
    assert values == {"sampler": {"name": "heun", "steps": 3}, "codec": {}}
    with pytest.raises(ConfigError, match=r"no 'teacher' here. Settings start with: sampler, codec\."):
        lay_settings(values, ["teacher.size=S"], closed=True)
    assert lay_settings(values, ["teacher.size=S"])["teacher"] == {"size": "S"}


def test_settings_of_a_part_are_told_from_the_others():
    texts = ["student.size=S", "a.b=1", "student.size=B", "students.size=L", "student=x"]
    parts, rest = split_settings(texts, {"student": {"name": "mlp"}})
    assert parts == {"student": {"name": "mlp", "size": "B"}}
    assert rest == ("a.b=1", "students.size=L", "student=x")


def test_unreadable_files(registry, tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_run_config(registry, "distill", file=tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1,\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_run_config(registry, "distill", file=broken)
    broken.write_text("!!python/object/apply:os.system ['echo hacked']\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_run_config(registry, "distill", file=broken)
    broken.write_text("- a\n")
    with pytest.raises(ConfigError, match="mapping"):
        load_run_config(registry, "distill", file=broken)


def test_missing_parts_are_named(registry):
    with pytest.raises(ConfigError, match="'student'"):
        load_run_config(registry, "distill", overrides={"teacher": "gaussian-mixture"})


@given(st.lists(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), min_size=1, max_size=4), st.integers() | st.booleans())
def test_assignments_nest(keys, value):
    nested = parse_assignment(f"{'.'.join(keys)}={str(value).lower() if isinstance(value, bool) else value}")
    for key in keys:
        nested = nested[key]
    assert nested == value


def test_scientific_notation_reaches_floats(registry):
    assert load(registry, "training.optimizer.learning_rate=3e-4").training.optimizer.learning_rate == 3e-4


def test_an_entry_of_a_list_is_set_by_its_number(registry):
    base = {**TINY, "trackers": ["mlflow"], "evaluation": {"evaluators": ["spread", {"name": "energy-distance"}]}}
    config = load_run_config(registry, "distill", overrides=base, assignments=["trackers.0.uri=http://x:1"])
    assert config.trackers[0].options.uri == "http://x:1"
    for number in ("1", "x"):
        with pytest.raises(ConfigError, match=rf"trackers\.{number}.*numbered from 0"):
            load_run_config(registry, "distill", overrides=base, assignments=[f"trackers.{number}.uri=x"])


@pytest.mark.parametrize("text", ["seed: 1\nseed: 2\n", "training: {images: 1, images: 2}", "[" * 5000])
def test_yaml_of_which_something_would_be_lost_is_refused(text):
    with pytest.raises(ConfigError, match="file is not valid YAML"):
        parse_yaml(text, "file")


def test_a_setting_that_came_after_a_run_is_no_change_of_it(registry):
    def resolved(*assignments):
        config = load_run_config(registry, "distill", preset="digits", assignments=assignments)
        return config, config.model_dump(mode="json")

    _, old = resolved()
    del old["runtime"]["timeout_seconds"], old["objective"]["balance_epsilon"], old["teacher"]["checkpoint"]
    today, new = resolved()
    assert differences(old, new) != []
    assert changed_settings(old, today) == []
    changed, _ = resolved("runtime.timeout_seconds=5", "objective.balance_epsilon=0.5")
    found = changed_settings(old, changed)
    assert [text.split(":")[0] for text in found] == ["objective.balance_epsilon", "runtime.timeout_seconds"]
