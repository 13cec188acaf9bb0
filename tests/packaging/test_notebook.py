"""The notebooks run from the first cell to the last, and what they show on the site is what they put out."""

import ast
import importlib.util
import math
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
STORY, FIRST = (DOCS / "notebooks" / name for name in ("the-2d-story.ipynb", "first-distillation.ipynb"))


@pytest.fixture(scope="module")
def notebooks(site_module):
    return site_module("_notebooks")


def table(text):
    """(energy distance, fidelity) by row of the notebook's last table."""
    rows = re.findall(r"^(\S.*?) +([\d.]+) +([\d.]+)$", text, re.MULTILINE)
    return {name: (float(energy), float(fidelity)) for name, energy, fidelity in rows}


def printed(notebooks, notebook):
    return "\n".join(text for cell in notebook["cells"] for text in notebooks.outputs(cell, "text/plain"))


def check_story(text):
    """What holds at any budget: errors grow along a jump, and every student has its scores."""
    found = re.search(r"rms distance at .*: \[([^\]]*)\]", text)
    distances = [float(value) for value in found[1].split(",")]
    assert distances[0] < distances[2] < distances[3]
    rows = table(text)
    assert rows.keys() == {
        "prediction", "prediction, 1/4", "correction", "correction, 1/4", "correction, quick", "both", "both, 1/4",
    }  # fmt: skip
    assert all(math.isfinite(value) for row in rows.values() for value in row)


def run_small(notebooks, monkeypatch, path, images):
    monkeypatch.setenv("FREEFLOW_NOTEBOOK_IMAGES", str(images))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = notebooks.execute(path)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    return notebook


@pytest.mark.long
def test_the_story_runs_on_a_small_budget(notebooks, monkeypatch):
    notebook = run_small(notebooks, monkeypatch, STORY, 20480)
    assert len(notebooks.figures(notebook)) == 4
    check_story(printed(notebooks, notebook))


def check_tutorial(notebooks, notebook):
    """A table with the student's row, pictures of the run and of its samples, scores, and advice in Python's words."""
    shown = {cell["id"]: cell for cell in notebook["cells"] if cell["cell_type"] == "code"}
    (table,) = (text for cell in shown.values() for text in notebooks.outputs(cell, "text/html"))
    assert "student, 1 step" in table
    assert len([picture for cell in shown.values() for picture in notebooks.outputs(cell, "image/png")]) == 3
    text = printed(notebooks, notebook)
    assert "TrainedStudent('transformer'" in text
    assert 'source="prior"' in text


def test_the_tutorial_runs_on_a_small_budget(notebooks, monkeypatch):
    check_tutorial(notebooks, run_small(notebooks, monkeypatch, FIRST, 640))


def test_the_kept_tutorial_shows_a_student_near_its_teacher(notebooks):
    notebook = notebooks.read(FIRST)
    check_tutorial(notebooks, notebook)
    distances = ast.literal_eval(re.search(r"\{'.*?\}", printed(notebooks, notebook), re.DOTALL)[0])
    assert distances["data"] < distances["teacher"] < distances["student"] < distances["teacher_1_step"] / 3


@pytest.mark.parametrize("found", [None, "there"])
def test_the_tutorial_installs_the_package_where_it_is_missing(notebooks, monkeypatch, found):
    called = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: called.append(command))
    first = next(cell for cell in notebooks.read(FIRST)["cells"] if cell["cell_type"] == "code")
    exec("".join(first["source"]), {})
    name = tomllib.loads((DOCS.parent / "pyproject.toml").read_text("utf-8"))["project"]["name"]
    assert called == ([] if found else [[sys.executable, "-m", "pip", "install", "--quiet", name]])


def test_what_was_kept_is_what_the_text_says(notebooks):
    text = printed(notebooks, notebooks.read(STORY))
    check_story(text)
    rows = table(text)
    assert rows["both"] < rows["prediction"] < rows["correction"]
    for name in ("prediction", "both", "correction"):
        assert rows[name] < rows[f"{name}, 1/4"]
    seeds = {
        name: [float(value) for value in values.split(", ")]
        for name, values in re.findall(r"^(.+), energy distance by seed: (.*)$", text, re.MULTILINE)
    }
    assert all(1.7 * both < alone for both, alone in zip(seeds["both, 1/4"], seeds["prediction, 1/4"], strict=True))
    assert all(both < alone for both, alone in zip(seeds["both"], seeds["prediction"], strict=True))
    assert rows["correction, quick"][0] < rows["prediction"][0]
    assert rows["correction, quick"][1] > 2 * rows["both"][1]
    shares = re.search(r"shares, correction, 1/4: \[([^\]]*)\]", text)
    assert sum(float(share) < 0.06 for share in shares[1].split(",")) >= 5


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_figures_of_the_site_are_the_notebooks(notebooks, path):
    figures = notebooks.figures(notebooks.read(path))
    assert figures or path != STORY
    for name, picture in figures.items():
        assert (DOCS / "images" / f"{name}.png").read_bytes() == picture, f"run `just notebook`: {name} is another's"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_tells_nothing_of_the_machine(path):
    text = path.read_text("utf-8")
    without_pictures = re.sub(r'"image/png": "[^"]*"', "", text)
    assert not re.search(r"(?<![:/\w])/(?:home|root|tmp|Users|work|usr)/", without_pictures)
    assert "iopub" not in text


def test_a_page_is_made_of_text_code_results_and_pictures(notebooks):
    cells = [
        {"cell_type": "markdown", "source": ["# Title"], "metadata": {}},
        {
            "cell_type": "code",
            "source": "print(1)",
            "metadata": {"figure": "one"},
            "outputs": [
                {"output_type": "stream", "name": "stdout", "text": ["1\n"]},
                {"output_type": "display_data", "data": {"image/png": "AAAA", "text/plain": "<Figure>"}},
            ],
        },
    ]
    page, pictures = notebooks.to_markdown({"cells": cells}, "story")
    assert page == "# Title\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n\n![one](story-1.png)\n"
    assert pictures == {"story-1.png": b"\0\0\0"}
