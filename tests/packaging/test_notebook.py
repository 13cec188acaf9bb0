"""The notebook runs from the first cell to the last, and what it shows on the site is what it put out."""

import math
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


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


def test_the_notebook_runs_on_a_small_budget(notebooks, monkeypatch):
    monkeypatch.setenv("FREEFLOW_NOTEBOOK_IMAGES", "20480")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for path in NOTEBOOKS:
        notebook = notebooks.execute(path)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert all(cell.execution_count for cell in code)
        assert len(notebooks.figures(notebook)) == 4
        check_story(printed(notebooks, notebook))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_was_kept_is_what_the_text_says(notebooks, path):
    text = printed(notebooks, notebooks.read(path))
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
    assert figures
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
