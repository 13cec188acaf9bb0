"""Mean and spread over seeds, as rows, as text and as figures."""

import csv
import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from freeflow_core.config import load_run_config
from freeflow_core.tools.compare.cost import Cost
from freeflow_core.tools.compare.manifest import Manifest, Outcome, Record
from freeflow_core.tools.compare.plan import Variant, planned_runs
from freeflow_core.tools.compare.plot import plot
from freeflow_core.tools.compare.table import Estimate, cells, default_score, lower_is_better, make_table, write_files
from freeflow_core.tools.cost.step import Rows

TEACHER = {
    "teacher": {"fd_data": 1.0},
    "teacher_1_step": {"fd_data": 40.0, "fidelity_mse": 0.5},
    "data": {"fd_data": 0.5},
}


def scores(value, few):
    rows = {**TEACHER, "student": {"evaluations": 1.0, "fd_data": value, "fidelity_mse": value / 10}}
    if few:
        rows |= {"student_2_steps": {"fd_data": value / 2}, "student_4_steps": {"fd_data": value / 4}}
    return rows


@pytest.fixture
def build(registry, tmp_path, monkeypatch):
    """``build({variant: [value of each seed, or an error]}, ...)``: a table, its runs and their manifest."""

    def make(values, *, few=("b",), sweep=None, swept=None, budget="images=640", score=None, **images):
        config = load_run_config(registry, "distill", preset="digits", assignments=["evaluation.few_steps=[2, 4]"])
        variants = [Variant(name, name.split("-")[0], (swept or {}).get(name), config) for name in values]
        settings = {"name": "mine", "seeds": 2, "budget": budget, "sweep": sweep and {"setting": sweep, "values": []}}
        cost = Cost(4.0, {"student": Rows(0, 1, 0), "teacher": Rows(1, 0, 0)}, 3 * 2**20)
        records = {
            v.name: Record(v.objective, v.value, {}, cost, images.get(v.name.replace("-", "_"), 640)) for v in variants
        }
        manifest = Manifest(tmp_path, "key", settings, records)
        runs = planned_runs(variants, max(map(len, values.values())), tmp_path)
        outcomes = {}
        for run in runs:
            value = values[run.variant.name][run.seed]
            if isinstance(value, str):
                outcomes[run.name] = Outcome("failed", error=value)
            elif value is None:
                outcomes[run.name] = Outcome("waiting")
            else:
                outcomes[run.name] = Outcome("finished", scores(value, run.variant.objective in few), 100.0 + value)
        monkeypatch.setattr(manifest, "outcomes", lambda runs: {run.name: outcomes[run.name] for run in runs})
        return make_table(manifest, runs, score), runs, manifest

    return make


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=8))
def test_estimates_are_the_mean_and_the_sample_deviation(values):
    found = Estimate.of(values)
    centre = sum(values) / len(values)
    assert found.mean == pytest.approx(centre, abs=1e-6)
    expected = math.sqrt(sum((v - centre) ** 2 for v in values) / (len(values) - 1))
    assert found.deviation == pytest.approx(expected, rel=1e-6, abs=1e-4)


def test_one_seed_has_no_spread_and_none_no_value():
    assert Estimate.of([3.0, None]) == Estimate(3.0, None, 1)
    assert Estimate.of([None]) is None
    assert Estimate.of([]) is None


def test_rows_hold_scores_by_steps_and_costs(build):
    table, _, _ = build({"a": [2.0, 4.0], "b": [6.0, 8.0]})
    a, b = table.rows
    assert a.scores == {1: Estimate(3.0, pytest.approx(math.sqrt(2)), 2)}
    assert {n: e.mean for n, e in b.scores.items()} == {1: 7.0, 2: 3.5, 4: 1.75}
    assert a.fidelity.mean == pytest.approx(0.3)
    assert (a.forwards_per_image, a.forwards_per_step, a.training_forwards) == (4.0, 256.0, 2560.0)
    assert a.images_per_second.mean == 103.0
    assert a.training_seconds == pytest.approx(640 / 103)
    assert (a.status, table.score, table.errors) == ("2 of 2", "fd_data", {})
    assert table.teacher_score("teacher_1_step") == 40.0


def test_curves_are_means_over_the_runs_that_were_scored_then(build, monkeypatch, tmp_path):
    _, runs, manifest = build({"a": [2.0, 4.0]})
    seen = [{320: {"fd_data": 6.0}, 640: {"fd_data": 2.0}}, {320: {"fd_data": 8.0}, 640: {"fd_data": 4.0}}]
    found = manifest.outcomes(runs)
    outcomes = {run.name: dataclasses.replace(found[run.name], during=seen[run.seed]) for run in runs}
    monkeypatch.setattr(manifest, "outcomes", lambda runs: outcomes)
    table = make_table(manifest, runs)
    assert {n: (e.mean, e.number) for n, e in table.rows[0].curve.items()} == {320: (7.0, 2), 640: (3.0, 2)}
    assert plot(table, tmp_path).is_file()
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: (drawn.append(self.axes), Path(path).touch()))
    plot(table, tmp_path)
    plot(dataclasses.replace(table, steps=(1,)), tmp_path)
    plot(dataclasses.replace(table, budget="forwards=2560"), tmp_path)
    assert [len(axes) for axes in drawn] == [2, 1, 2], "no panel of several steps where there is one"
    over = [list(axes[0].lines[0].get_xdata()) for axes in drawn]
    assert over == [[320, 640], [320, 640], [1280, 2560]], "what the budget counts"


def test_failed_and_waiting_runs_leave_gaps(build):
    table, _, _ = build({"a": [2.0, "it broke."], "b": [None, None]})
    a, b = table.rows
    assert (a.status, b.status) == ("1 of 2, 1 failed", "0 of 2")
    assert a.scores[1] == Estimate(2.0, None, 1)
    assert b.scores == {}
    assert b.training_seconds is None
    assert table.errors == {"a-seed1": "it broke."}
    assert list(cells(table, b).values())[1:5] == ["-", "-", "-", "-"]


def test_dashes_stand_where_the_student_has_no_such_mode(build):
    table, _, _ = build({"a": [2.0, 4.0], "b": [6.0, 8.0]})
    a, b = (cells(table, row) for row in table.rows)
    assert list(a)[:5] == ["objective", "1 step", "2 steps", "4 steps", "fidelity"]
    assert list(a.values())[:4] == ["a", "3 ± 1.4", "-", "-"]
    assert list(b.values())[:4] == ["b", "7 ± 1.4", "3.5 ± 0.71", "1.75 ± 0.35"]
    assert (a["memory"], a["runs"]) == ("3 MiB", "2 of 2")
    assert table.teacher_lines[1] == ("teacher, 1 step", "40", "0.5")


def test_rows_of_the_teacher_are_left_out_where_runs_do_not_share_it(build):
    table, runs, manifest = build({"a": [2.0], "b": [3.0]})
    assert table.teacher == TEACHER
    other = runs[1].variant.config.model_copy(update={"teacher": None})
    swept = [runs[0], dataclasses.replace(runs[1], variant=dataclasses.replace(runs[1].variant, config=other))]
    assert make_table(manifest, swept).teacher == {}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["evaluations", "ms_per_image", "kd_data", "fd_data", "fd_teacher"], "fd_data"),
        (["fd_teacher", "energy_data"], "energy_data"),
        (["accuracy", "energy_teacher"], "energy_teacher"),
        (["evaluations", "accuracy"], "accuracy"),
        ([], None),
    ],
)
def test_the_score_that_is_compared_unless_one_is_named(names, expected):
    assert default_score(names) == expected


def test_the_score_that_is_named_is_used_where_it_is_known(build):
    assert build({"a": [2.0]}, score="fidelity_mse")[0].score == "fidelity_mse"
    assert build({"a": [2.0]}, score="nonsense")[0].score == "fd_data"
    assert lower_is_better("fd_data")
    assert lower_is_better("fidelity_mse")
    assert not lower_is_better("accuracy")


def test_files_can_be_read_again(build, tmp_path):
    table, runs, manifest = build({"a": [2.0, "it broke."], "b": [6.0, 8.0]})
    manifest.records["b"].cost = Cost(4.0, {"student": Rows(1, 1, 0.5)}, None)
    table = make_table(manifest, runs)
    files = write_files(table, runs, manifest, tmp_path / "x.png")
    with files["csv"].open(newline="") as file:
        a, b = csv.DictReader(file)
    assert (float(b["fd_data_1_step_mean"]), float(b["fd_data_4_steps_mean"])) == (7.0, 1.75)
    assert float(b["fd_data_1_step_deviation"]) == pytest.approx(math.sqrt(2))
    assert (a["fd_data_2_steps_mean"], a["finished"], a["failed"], a["peak_memory_bytes"]) == ("", "1", "1", "3145728")
    with files["runs"].open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert {line["run"] for line in lines} == {"a-seed0", "a-seed1", "b-seed0", "b-seed1"}
    (broken,) = [line for line in lines if line["run"] == "a-seed1"]
    assert (broken["status"], broken["error"], broken["value"]) == ("failed", "it broke.", "")
    text = files["table"].read_text()
    assert "| b | 7 ± 1.4 | 3.5 ± 0.71 | 1.75 ± 0.35 |" in text
    assert "| b | student 1 / 1 / 0.5 |" in text
    assert "- `a-seed1`: it broke." in text
    assert "(x.png)" in text
    assert not list(tmp_path.glob(".*partial"))


def test_score_over_cost_is_a_picture(build, tmp_path):
    table, _, _ = build({"a": [2.0, 4.0], "b": [6.0, 8.0]}, b=128_000)
    with Image.open(plot(table, tmp_path)) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 600
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 50, "not an empty page"


@pytest.mark.parametrize("values", [("0", "0.5", "1"), ("x", "y", "z")])
def test_the_swept_setting_is_an_axis_and_a_column(build, tmp_path, values):
    swept = {f"a-{n}": (float(v) if v[0] in "01" else v) for n, v in enumerate(values)}
    table, _, _ = build({**{name: [2.0, 3.0] for name in swept}, "b": [1.0, 1.5]}, sweep="source.s", swept=swept)
    assert [cells(table, row)["s"] for row in table.rows] == [*(str(v) for v in swept.values()), "all"]
    assert plot(table, tmp_path).name == "sweep.png"


def test_figures_show_the_costs_that_differ(build, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: (drawn.append(self), Path(path).touch()))

    def axes_of(table, *_):
        plot(table, tmp_path)
        return drawn[-1].axes

    def points(axes):
        return [(*bars.lines[0].get_xdata(), *bars.lines[0].get_ydata()) for bars in axes.containers]

    left, right = axes_of(*build({"a": [2.0, 4.0], "b": [6.0, 8.0]}, b=1280))
    assert points(left) == [(2560.0, 3.0), (5120.0, 7.0)]
    assert points(right) == [(1, 3.0), (1, 2, 4, 7.0, 3.5, 1.75)]
    left, _ = axes_of(*build({"a": [2.0], "b": [6.0]}, budget="forwards=1000"))
    assert points(left)[0][0] == pytest.approx(640 / 102), "equal forwards would stand one above the other"
    swept = {"a-0": 0.0, "a-1": 1.0}
    values = {"a-0": [2.0, 3.0], "a-1": [4.0, 9.0], "b": [1.0, 1.5]}
    (axes,) = axes_of(*build(values, sweep="source.s", swept=swept))
    assert points(axes) == [(0.0, 1.0, 2.5, 6.5)]
