"""``comparison.json``: what may be added to a comparison, what may not change, and what is found again."""

from __future__ import annotations

import json

import pytest

from freeflow_core.config.load_compare import load_compare_config, objective_config
from freeflow_core.errors import ConfigError
from freeflow_core.tools.compare.cost import Cost
from freeflow_core.tools.compare.manifest import MANIFEST_FILE, Manifest
from freeflow_core.tools.compare.outcomes import planned_runs
from freeflow_core.tools.compare.passes import Rows
from freeflow_core.tools.compare.variants import Variant


@pytest.fixture
def make(registry, tmp_path):
    """``make(*objectives, assignments=..., **section)``: the manifest of a comparison in ``tmp_path / "c"``."""

    def open_one(*objectives, assignments=(), **section):
        config = load_compare_config(
            registry,
            preset="digits",
            overrides={"source": "digits"},
            comparison={"objectives": objectives or ("freeflow", "shortcut"), **section},
            assignments=assignments,
        )
        variants = [
            Variant(name, name, None, objective_config(registry, config, name, config.values[0]))
            for name in config.comparison.objectives
        ]
        return Manifest.open(tmp_path / "c", config, variants)

    return open_one


def test_what_was_measured_is_found_again(make, tmp_path):
    first = make()
    assert not first.resumed
    assert not (tmp_path / "c").exists(), "opening writes nothing"
    first.records["freeflow"].cost = Cost(5.5, {"student": Rows(0.5, 1, 0.25)}, 1000, 12.5)
    first.records["freeflow"].images = 640
    first.errors["shortcut-seed0"] = "it broke."
    first.write({"freeflow-seed0": "finished"})
    second = make()
    assert second.resumed
    assert second == Manifest(**{**vars(first), "resumed": True})
    assert second.records["freeflow"].cost.rows["student"] == Rows(0.5, 1, 0.25)
    assert json.loads((tmp_path / "c" / MANIFEST_FILE).read_text())["runs"] == {"freeflow-seed0": "finished"}


@pytest.mark.parametrize(
    ("objectives", "changes", "message"),
    [
        ((), {"budget": "images=9"}, r'budget: "images=8" -> "images=9"'),
        ((), {"seeds": 1}, r"seeds: 2 -> 1"),
        (("freeflow",), {}, r"shortcut is missing"),
        ((), {"assignments": ["training.batch_size=32"]}, r"freeflow: training\.batch_size: 64 -> 32"),
        ((), {"assignments": ["evaluation.num_samples=5"]}, r"evaluation\.num_samples: 1500 -> 5"),
        ((), {"settings_for": {"shortcut": {"seed": 3}}}, r"shortcut: seed: 0 -> 3"),
        ((), {"sweep": {"setting": "training.batch_size", "values": [1, 2]}}, r"sweep"),
        ((), {"assignments": ["name=other"]}, r'name: "digits" -> "other"'),
    ],
)
def test_a_changed_comparison_is_refused_and_the_difference_named(make, objectives, changes, message):
    make(seeds=2, budget="images=8").write({})
    with pytest.raises(ConfigError, match=message):
        make(*objectives, **{"seeds": 2, "budget": "images=8", **changes})


def test_objectives_and_seeds_may_be_added_and_logging_may_change(make):
    first = make(seeds=2)
    first.records["freeflow"].images = 640
    first.write({})
    more = make("freeflow", "shortcut", "eulerian", seeds=3, assignments=["logging.every_images=7", "trackers=[]"])
    assert more.records["freeflow"].images == 640
    assert more.records["eulerian"].images is None
    assert (more.key, more.settings["seeds"]) == (first.key, 3)


def test_other_files_and_damage_are_refused(make, tmp_path):
    folder = tmp_path / "c"
    folder.mkdir()
    (folder / ".lock").touch()
    make()
    (folder / "thesis.txt").touch()
    with pytest.raises(ConfigError, match="already holds other files"):
        make()
    (folder / MANIFEST_FILE).write_text('{"version": 1')
    with pytest.raises(ConfigError, match="cannot be read as a comparison"):
        make()


def test_every_seed_sees_all_objectives_before_the_next(registry, tmp_path):
    config = load_compare_config(
        registry, preset="digits", overrides={"seed": 4}, comparison={"objectives": ["freeflow", "freeflow-prediction"]}
    )
    variants = [Variant(n, n, None, objective_config(registry, config, n)) for n in config.comparison.objectives]
    runs = planned_runs(variants, 2, tmp_path)
    assert [run.name for run in runs] == [
        "freeflow-seed4",
        "freeflow-prediction-seed4",
        "freeflow-seed5",
        "freeflow-prediction-seed5",
    ]
    assert (runs[2].config(variants[0].config).seed, runs[2].config(variants[0].config).name) == (5, "freeflow-seed5")
    assert runs[3].folder == tmp_path / "freeflow-prediction-seed5"
