"""What a person at a terminal of 80 columns meets."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from freeflow_cli.commands import options
from freeflow_cli.main import build_app
from run_helpers import freeflow as real
from typer.testing import CliRunner

from freeflow_core.errors import suggest
from freeflow_core.plugin import Manager, Registry


@pytest.fixture(scope="module")
def everything():
    return Manager.load()


def test_cli_no_name_is_broken_at_80_columns(everything, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    listed = real("plugins", "list", manager=everything).stdout
    shown = real("plugins", "show", "freeflow", "--kind", "objective", manager=everything).stdout
    words = set(listed.split())
    registry = Registry(everything)
    for kind in ("objective", "student", "teacher", "evaluator"):
        assert set(registry.components(kind)) <= words
    assert set(registry.component("objective", "freeflow").load_config_class().model_fields) <= set(shown.split())
    assert max(map(len, listed.splitlines())) <= 80


def test_cli_show_takes_the_kind_before_the_name(everything):
    given = real("plugins", "show", "objective", "freeflow", manager=everything).stdout
    assert given == real("plugins", "show", "freeflow", "--kind", "objective", manager=everything).stdout
    assert given.startswith("objective freeflow")
    assert "KIND NAME" in real("plugins", "show", "a", "b", "c", exit_code=2, manager=everything).stderr
    assert "Did you mean 'objective'?" in real("plugins", "show", "objectiv", "freeflow", exit_code=2).stderr


def test_cli_the_preset_is_named_at_the_start_and_in_the_plan(freeflow, api, manager):
    run = SimpleNamespace(name="toy", command="distill", folder=Path("runs/toy"), resumed=False)

    def distill(*arguments, **options):
        manager.hook.freeflow_run_started(run=run)
        return original(*arguments, **options)

    original, api.distill = api.distill, distill
    assert "preset mnist" in freeflow("distill").stderr
    assert "preset digits" in freeflow("distill", "--preset", "digits").stderr
    assert "preset digits" in freeflow("distill", "--preset", "digits", "--dry-run").stdout


@pytest.mark.parametrize(
    ("typed", "known", "meant"),
    [
        ("mnits", ("mnist", "units"), "mnist"),
        ("freflow", ("freeflow", "freeflow-prediction"), "freeflow"),
        ("MeanFlow", ("meanflow", "improved-meanflow"), "meanflow"),
        ("xyz", ("meanflow", "freeflow"), None),
        ("anything", (), None),
    ],
)
def test_the_nearest_name_by_edits_is_suggested(typed, known, meant):
    assert suggest(typed, known) == (f" Did you mean {meant!r}?" if meant else "")


def test_cli_completion_offers_each_name_once(everything):
    complete = options.completion(lambda registry: [registry.presets(c) for c in ("distill", "pretrain", "compare")])

    class Context:
        def find_object(self, kind):
            return build_app(everything).info.context_settings["obj"]

    names = [name for name, _ in complete(Context(), "")]
    assert len(names) == len(set(names)) > 5


def test_cli_compare_refuses_a_misspelt_source_before_anything_heavy(everything, monkeypatch):
    monkeypatch.setitem(sys.modules, "freeflow_core.api", None)
    result = CliRunner().invoke(build_app(everything), ["compare", "--source", "mnits"])
    assert result.exit_code == 2
    assert "Did you mean 'mnist'?" in result.stderr
