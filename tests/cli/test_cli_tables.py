import io
import math
from pathlib import Path

import pytest
from freeflow_cli import console, tables
from freeflow_cli.tables import fitted_tables, score_tables
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from freeflow_core.config import EvaluationConfig
from freeflow_core.config.run import row_title

SCORES = [
    "fid_data", "fid_teacher", "kid_data", "kid_teacher",
    "accuracy", "spread_ratio", "fidelity_error", "derivative_residual",
]  # fmt: skip
ROWS = ["data", "teacher", "teacher_1_step", "student", "student_2_steps", "student_jump"]


def printed(tables, width):
    stream = io.StringIO()
    Console(file=stream, width=width).print(*tables)
    return stream.getvalue()


def table_text(scores, width=100):
    return printed(score_tables(scores, width=width), width)


def full_scores():
    return {
        row: {"evaluations": 10.0 * r, "ms_per_image": 1.5 + r}
        | {name: 100 * (r + 1) + s + 0.5 for s, name in enumerate(SCORES)}
        for r, row in enumerate(ROWS)
    }


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_cli_table_fits_and_loses_nothing(width):
    text = table_text(full_scores(), width)
    assert max(map(len, text.splitlines())) <= width
    for row in full_scores().values():
        for value in row.values():
            assert tables.number(value) in text.split()
    for name in SCORES:
        for word in name.split("_"):
            assert word in text.split()


def test_cli_table_shows_a_standard_error_behind_its_score():
    text = table_text({"student": {"fid": 1.5, "fid_error": 0.123, "fidelity_error": 2.5}})
    assert ["fid", "1.5", "±", "0.12"] in [line.split() for line in text.splitlines()]
    assert "fid error" not in text


def test_cli_table_marks_what_does_not_apply():
    lines = [line.split() for line in table_text({"data": {"fid": 1.5}, "student": {"kid": 2.5}}).splitlines()]
    assert ["fid", "1.5", "-"] in lines
    assert ["kid", "-", "2.5"] in lines


def test_cli_table_takes_scores_in_any_order_and_costs_first():
    text = table_text({"student": {"fid": 1.5, "ms_per_image": 2.0, "evaluations": 3.0}})
    assert [line.split()[-1] for line in text.splitlines() if line.strip()[-1:].isdigit()][-3:] == ["3", "2", "1.5"]


def test_cli_a_run_has_one_table_at_100_columns():
    errors = {f"{name}_error": 1.0 for name in ("fd", "fd_teacher", "kd", "kd_teacher")}
    scores = dict.fromkeys(("evaluations", "ms_per_image", *SCORES, "fd", "fd_teacher", "kd", "kd_teacher"), 4.013)
    rows = ["teacher_floor", "teacher", "teacher_1_step", "student", "student_jump"]
    assert len(score_tables(dict.fromkeys(rows, scores | errors), width=100)) == 1
    with_data = dict.fromkeys(["data", *rows], scores | errors | {"fd": 0.5745, "fd_error": 0.0512})
    assert len(score_tables(with_data, width=100)) == 1
    assert "0.575±0.05" in table_text(with_data).split()
    assert "± 0.051" in table_text(with_data, width=130)


def test_cli_a_run_with_few_step_rows_has_one_table_at_100_columns():
    small = dict.fromkeys(("evaluations", "ms_per_image", *SCORES, "fd", "fd_teacher", "kd", "kd_teacher"), -0.008614)
    errors = {f"{name}_error": 0.0512 for name in ("fd", "fd_teacher")}
    rows = ["data", "teacher_floor", "teacher", "teacher_1_step", "student", "student_2_steps", "student_4_steps"]
    scores = dict.fromkeys([*rows, "student_jump"], small | errors)
    assert len(score_tables(scores, width=100)) == 1
    text = table_text(scores, 100)
    assert max(map(len, text.splitlines())) <= 100
    words = {word for name in SCORES for word in name.split("_")} | {"training", "images", "student,", "teacher,"}
    assert words <= set(text.split()), "whole words"
    assert {"-0.008614", "±0.051"} <= set(text.split())
    assert {"-0.00861", "±0.05"} <= set(table_text(scores, 96).split())


@pytest.mark.parametrize("width", [60, 80, 100])
def test_cli_long_names_go_on_in_the_next_line_between_words(width):
    titles = ["objective", "learning_rate", "1 step", "2 steps", "4 steps", "fidelity", "forwards/image", "runs"]
    cells = ["1e-05", "0.0937 ± 0.019", "12.5 ± 0.2", "-", "1.25 ± 0.02", "5.5", "2 of 3, 1 failed"]
    text = printed(fitted_tables(titles, [["continuous-consistency", *cells]], keys=2, width=width), width)
    assert max(map(len, text.splitlines())) <= width
    assert {"1e-05", "-", "failed", "fidelity", "forwards"} <= set(text.split())
    assert {"continuous-consistency"} <= set(text.split()) or {"continuous-", "consistency"} <= set(text.split())


def test_cli_close_numbers_keep_the_digits_before_the_point():
    rows = [["row", "1234.6 ± 49", "2.309 ± 0.49", "3 of 3"]]
    text = printed(fitted_tables(["name", "a", "b", "c"], rows, keys=1, width=36), 36)
    assert "1235±49 2.31±0.5 3 of 3" in " ".join(text.split())


def test_cli_distances_are_explained_where_they_are():
    assert "negative" in tables.score_legend({"student": {"kd_data": -0.01}})
    assert "negative" not in tables.score_legend({"student": {"fd": 1.0}})
    assert tables.score_legend({"student": {"accuracy": 1.0}}) == ""


@pytest.mark.parametrize(
    ("row", "title"),
    [
        ("data", "training images (floor)"),
        ("teacher", "teacher, 50 steps"),
        ("teacher_1_step", "teacher, 1 step"),
        ("student", "student, 1 step"),
        ("student_4_steps", "student, 4 steps"),
        ("student_jump", "student jump to t=0.25, then teacher, 3 steps"),
        ("something_else", "something else"),
    ],
)
def test_cli_row_titles(row, title):
    assert row_title(row, EvaluationConfig(reference_steps=50, jump_to=0.25, jump_steps=3)) == title


@given(st.floats(-1e300, 1e300))
def test_cli_numbers_keep_three_digits_and_stay_short(value):
    text = tables.number(value)
    assert len(text) <= 10
    assert math.isclose(float(text), value, rel_tol=6e-3)


def test_cli_paths_are_relative_inside_the_working_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert console.shown_path(tmp_path / "runs" / "a") == "runs/a"
    assert console.shown_path(Path("runs/../runs/b")) == "runs/b"
    assert console.shown_path(tmp_path.parent) == str(tmp_path.parent)
