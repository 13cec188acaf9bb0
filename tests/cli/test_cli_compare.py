"""``freeflow compare``: what reaches the api, what is printed, and the exit code."""

from types import SimpleNamespace

import pytest
from freeflow_cli.main import build_app
from typer.testing import CliRunner

from freeflow_core.plugin import Manager
from freeflow_core.tools.compare.cost import Cost
from freeflow_core.tools.compare.table import Estimate, Row, Table


def row(name, value=None, failed=0, few=True):
    steps = {1: Estimate(3.25, 0.5, 3), **({2: Estimate(2.0, 0.25, 3), 4: Estimate(1.5, None, 1)} if few else {})}
    return Row(
        name=name,
        objective=name.split("-")[0],
        value=value,
        finished=3 - failed,
        failed=failed,
        planned=3,
        images=57_600,
        batch_size=64,
        cost=Cost(5.5, {}, 3 * 2**20),
        scores=steps,
        fidelity=Estimate(0.0123, 0.001, 3),
        images_per_second=Estimate(1234.5, 10.0, 3),
    )


@pytest.fixture
def api(api, monkeypatch):
    """Notes the call, answers with a result that ``status``, ``rows`` and ``failed`` decide."""
    api.folder = api.folder.with_name("compare-mine")
    rows = (row("freeflow", few=False), row("shortcut"))

    def compare(config, **arguments):
        api.calls.append((config, arguments))
        shown = (row("freeflow", few=False), row("shortcut", failed=1)) if api.failed else rows
        teacher = {"teacher": {"fd_data": 0.9}}
        table = Table("mine", "fd_data", None, (1, 2, 4), "images=57600", shown, teacher, api.failed)
        files = {"table": api.folder / "comparison.md"}
        return SimpleNamespace(folder=api.folder, status=api.status, table=table, files=files, failed=api.failed)

    monkeypatch.setattr(api, "compare", compare, raising=False)
    return api


@pytest.fixture
def freeflow():
    """The command line over all installed plugins."""
    app = build_app(Manager.load())
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def test_cli_compare_passes_every_option(freeflow, api, tmp_path):
    result = freeflow(
        "compare", "--teacher", "digits", "--objectives", "freeflow, shortcut", "--seeds", "5", "--budget", "forwards=1e6",
        "--source", "digits", "--student", "transformer", "--preset", "digits-guided", "--set", "training.batch_size=32",
        "--set-for", "shortcut:training.batch_size=16", "--sweep", "source.augment_strength=0,1", "--score", "kd_data",
        "--set", "source.augment=[rotation]", "--seed", "7", "--name", "mine", "--output", str(tmp_path / "here"),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    ((config, arguments),) = api.calls
    assert (arguments["output"], arguments["dry_run"]) == (tmp_path / "here", False)
    own = config.comparison
    assert (config.name, own.objectives) == ("mine", ("freeflow", "shortcut"))
    assert (own.seeds, str(own.budget)) == (5, "forwards=1000000")
    assert (own.sweep.setting, own.sweep.values, own.score) == ("source.augment_strength", (0, 1), "kd_data")
    assert own.settings_for == {"shortcut": {"training": {"batch_size": 16}}}
    assert config.base["teacher"]["name"] == config.base["source"]["name"] == "digits"
    assert config.base["seed"] == 7
    assert config.base["objective"]["guidance_min"] == 2.5, "the preset named"
    assert config.settings["training"] == {"batch_size": 32}


def test_cli_compare_starts_from_the_digits_preset_or_a_comparisons_own(freeflow, api):
    assert freeflow("compare", "--objectives", "freeflow").exit_code == 0
    assert freeflow("compare", "--preset", "mismatch", "--dry-run").exit_code == 0
    (first, _), (second, arguments) = api.calls
    assert (first.name, first.comparison.budget, first.comparison.seeds) == ("digits", None, 3)
    assert second.comparison.sweep.setting == "source.augment_strength"
    assert arguments["dry_run"]


def test_cli_compare_fits_into_eighty_columns(freeflow, api, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = freeflow("compare", "--objectives", "freeflow,shortcut").output
    assert all(len(line) <= 80 for line in text.splitlines() if "/" not in line)
    assert "3.25 ± 0.5" in text


def test_cli_compare_is_one_table_at_a_hundred_columns(freeflow, api, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    lines = freeflow("compare", "--objectives", "freeflow,shortcut").output.splitlines()
    assert sum("───" in line for line in lines) == 1
    assert all(len(line) <= 100 for line in lines if "/" not in line)
    assert any(line.split()[:1] == ["shortcut"] and "57,600" in line.split() for line in lines)


def test_cli_compare_ends_with_1_when_a_run_failed_and_still_shows_the_table(freeflow, api, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    api.status, api.failed = "failed", {"shortcut-seed1": "RuntimeError: it broke."}
    result = freeflow("compare", "--objectives", "freeflow,shortcut")
    assert result.exit_code == 1
    assert "2 of 3, 1 failed" in result.output
    assert "shortcut-seed1 failed: RuntimeError: it broke." in " ".join(result.output.split())
    assert "same command again" in result.output


def test_cli_compare_dry_run_shows_costs_alone(freeflow, api):
    api.status = "planned"
    text = freeflow("compare", "--objectives", "freeflow,shortcut", "--dry-run").output
    assert "forwards/image" in text
    assert "fidelity" not in text
    assert "Dry run: 6 runs would go to" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--teacher", "digits"], "name the objectives"),
        (["--objectives", "freeflow", "--sweep", "source.seed"], "expected a.b=v1,v2"),
    ],
)
def test_cli_compare_mistakes_end_with_2_before_anything_begins(freeflow, api, arguments, message):
    result = freeflow("compare", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert api.calls == []
