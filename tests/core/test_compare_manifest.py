"""``comparison.json``: what may be added to a comparison, what may not change, and what is found again."""

import json

import pytest

from freeflow_core.config.compare import load_compare_config, objective_config
from freeflow_core.errors import ConfigError
from freeflow_core.tools.compare.cost import Cost
from freeflow_core.tools.compare.manifest import MANIFEST_FILE, Manifest
from freeflow_core.tools.compare.plan import Variant, planned_runs
from freeflow_core.tools.cost.step import Rows


def variants_of(registry, config):
    first = config.values[0]
    return [Variant(n, n, None, objective_config(registry, config, n, first)) for n in config.comparison.objectives]


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
        return Manifest.open(tmp_path / "c", config, variants_of(registry, config))

    return open_one


def test_what_was_measured_is_found_again(make, tmp_path):
    first = make()
    assert not first.resumed
    assert not (tmp_path / "c").exists(), "opening writes nothing"
    first.records["freeflow"].cost = Cost(5.5, {"student": Rows(0.5, 1, 0.25)}, 1000)
    first.records["freeflow"].images = 640
    first.errors["shortcut-seed0"] = "it broke."
    first.write([])
    second = make()
    assert second.resumed
    assert second.records == first.records
    assert second.records["freeflow"].cost.rows["student"] == Rows(0.5, 1, 0.25)
    assert (second.key, second.settings, second.errors) == (first.key, first.settings, first.errors)


def test_a_manifest_of_an_earlier_version_is_read(make, tmp_path):
    """Which kept a speed that nothing asks for any more, and had one setting less."""
    first = make()
    first.records["freeflow"].cost = Cost(5.5, {}, 1000)
    first.write([])
    path = tmp_path / "c" / MANIFEST_FILE
    values = json.loads(path.read_text())
    values["variants"]["freeflow"]["cost"]["images_per_second"] = 12.5
    del values["variants"]["freeflow"]["config"]["runtime"]["timeout_seconds"]
    path.write_text(json.dumps(values))
    assert make().records["freeflow"].cost == Cost(5.5, {}, 1000)


@pytest.mark.parametrize(
    ("objectives", "changes", "difference"),
    [
        ((), {"budget": "images=9"}, "budget"),
        ((), {"seeds": 1}, "seeds: 2 -> 1"),
        (("freeflow",), {}, "shortcut is missing"),
        ((), {"assignments": ["evaluation.num_samples=5"]}, r"evaluation\.num_samples: 1500 -> 5"),
        ((), {"settings_for": {"shortcut": {"seed": 3}}}, "shortcut: seed: 0 -> 3"),
        ((), {"sweep": {"setting": "training.batch_size", "values": [1, 2]}}, "sweep"),
    ],
)
def test_a_changed_comparison_is_refused_and_the_difference_named(make, objectives, changes, difference):
    make(seeds=2, budget="images=8").write([])
    with pytest.raises(ConfigError, match=difference):
        make(*objectives, **{"seeds": 2, "budget": "images=8", **changes})


def test_objectives_and_seeds_may_be_added_and_logging_may_change(make):
    first = make(seeds=2)
    first.records["freeflow"].images = 640
    first.write([])
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
    with pytest.raises(ConfigError, match="other files"):
        make()
    (folder / MANIFEST_FILE).write_text('{"version": 1')
    with pytest.raises(ConfigError, match="cannot be read"):
        make()


def test_every_seed_sees_all_objectives_before_the_next(registry, tmp_path):
    objectives = ["freeflow", "freeflow-prediction"]
    config = load_compare_config(
        registry, preset="digits", overrides={"seed": 4}, comparison={"objectives": objectives}
    )
    runs = planned_runs(variants_of(registry, config), 2, tmp_path)
    assert [(run.variant.name, run.seed) for run in runs] == [(name, seed) for seed in (4, 5) for name in objectives]
    run = runs[2].config(runs[2].variant.config)
    assert (run.seed, run.name, runs[2].folder) == (5, "freeflow-seed5", tmp_path / "freeflow-seed5")
