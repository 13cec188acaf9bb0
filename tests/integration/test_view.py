"""``freeflow view``: what its server answers, and what the page does in a real browser."""

import json
import math
import shutil
import threading
import urllib.error
import urllib.request
from urllib.parse import urlencode

import numpy as np
import pytest
from freeflow_cli.view.server import MOST_SAMPLES, Gallery, make_server
from PIL import Image

from freeflow_core import api
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces.journal import Journal

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, beside one that has just begun."""
    folder = tmp_path_factory.mktemp("view") / "runs"
    result = api.distill(
        teacher="digits",
        objective={"name": "freeflow", "guidance_min": 1.0, "guidance_max": 2.0},
        training={"images": 192, "batch_size": 64},
        logging={"every_images": 64},
        samples={"every_images": 64, "per_class": 1},
        evaluation={"num_samples": 40, "reference_steps": 2, "cache": False, "guidance_weight": 1.5},
        trackers=[],
        runtime={"device": "cpu", "threads": 1},
        output=folder / "digits",
    )
    begun = folder / "begun"
    begun.mkdir()
    (begun / "config.yaml").write_text("teacher: digits\nobjective: freeflow\ntraining: {images: 1000}\n")
    journal = Journal(begun)
    journal.write_status(status="running", command="distill")
    journal.add_metrics(100, {"student/loss": 1.0, "speed": math.nan})
    journal.add_metrics(200, {"student/loss": 0.5, "speed": math.inf})
    return result


@pytest.fixture(scope="module")
def address(run, manager):
    server = make_server(Gallery(run.folder.parent, manager), "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def get(address):
    def get(path, headers=None, **query):
        request = urllib.request.Request(f"{address}{path}?{urlencode(query)}", headers=headers or {})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer) if answer.headers["Content-Type"] == "application/json" else answer.read()

    return get


def status(get, *arguments, **query):
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(*arguments, **query)
    return caught.value.code, caught.value.read().decode()


def test_the_runs_of_a_folder_with_what_is_known_of_each(get, run):
    assert {(one["name"], one["status"]) for one in get("/runs.json")} == {("digits", "finished"), ("begun", "running")}
    about = get("/run.json", run="digits")
    assert about["about"]["teacher"] == "digits"
    assert about["total"] == 192
    assert any(cells[0] == "teacher, 2 steps" for cells in about["table"]["rows"])
    row = next(cells for cells in about["table"]["rows"] if cells[0].startswith("student, 1 step"))
    assert f"{run.scores['student']['fd_data']:.4g}" in row[about["table"]["titles"].index("fd_data")]
    assert (about["student"]["classes"], about["student"]["guidance"], about["student"]["few_steps"]) == (
        10,
        1.5,
        False,
    )
    assert (about["student"]["guidance_min"], about["student"]["guidance_max"]) == (1.0, 2.0)
    assert get("/run.json", run="begun")["student"] is None
    pictures = [(number, one) for number, one in enumerate(about["pictures"]) if one["images"] == 64]
    assert get("/picture.png", run="digits", number=pictures[0][0]).startswith(b"\x89PNG")


def test_curves_are_those_of_the_journal_and_finite(get, run):
    curves = get("/curves.json", run="digits")
    losses = [(record.images, record.values.get("student/loss")) for record, _ in Journal(run.folder).metrics()]
    assert curves["student/loss"] == [[images, loss] for images, loss in losses if loss is not None]
    assert get("/curves.json", run="begun") == {"student/loss": [[100, 1.0], [200, 0.5]]}


def test_samples_on_demand_are_the_students(get, run, tmp_path):
    def sample(**query):
        (tmp_path / "sample.png").write_bytes(get("/sample.png", run="digits", **query))
        return np.asarray(Image.open(tmp_path / "sample.png"))

    expected = np.asarray(run.student.sample(8, labels=3, guidance=2.0, seed=7).grid(8))
    assert np.array_equal(sample(num=8, label=3, guidance=2.0, seed=7), expected)
    assert not np.array_equal(sample(num=8, label=3, guidance=2.0, seed=8), expected)


@pytest.mark.parametrize(
    ("path", "query", "code"),
    [
        ("/nothing", {"run": "digits"}, 404),
        ("/run.json", {"run": "../digits"}, 404),
        ("/run.json", {}, 404),
        ("/picture.png", {"run": "digits", "number": 10_000}, 404),
        ("/picture.png", {"run": "digits", "number": "../../x"}, 404),
        ("/sample.png", {"run": "begun"}, 400),
        ("/sample.png", {"run": "digits", "num": MOST_SAMPLES + 1}, 400),
        ("/sample.png", {"run": "digits", "num": 0}, 400),
        ("/sample.png", {"run": "digits", "label": 11}, 400),
        ("/sample.png", {"run": "digits", "steps": 2}, 400),
        ("/sample.png", {"run": "digits", "guidance": "much"}, 400),
    ],
)
def test_what_cannot_be_answered_is_said(get, path, query, code):
    found, text = status(get, path, **query)
    assert found == code
    assert json.loads(text)["error"]


def test_pages_of_other_names_are_refused(get):
    assert status(get, "/runs.json", {"Host": "elsewhere.example:80"})[0] == 403


def test_a_folder_without_runs_and_an_address_in_use(address, run, manager, tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        Gallery(tmp_path, manager)
    with pytest.raises(ConfigError, match="cannot be had"):
        make_server(Gallery(run.folder, manager), "127.0.0.1", int(address.rpartition(":")[2]))


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_page_in_a_browser(address):
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 400, "height": 800})
        page.set_default_timeout(60_000)
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{address}/#digits")
        sample = page.locator("#sample[src^=blob]")
        sample.wait_for()
        page.wait_for_function("document.getElementById('sample').naturalWidth > 0")
        assert page.locator("#status").inner_text() == "finished"
        assert "student, 1 step" in page.locator("#table").inner_text()
        assert page.locator("#curves figure").count() > 3
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing is cut off on a phone

        def change(locator, value):
            before = sample.get_attribute("src")
            page.locator(locator).evaluate(
                "(element, value) => { element.value = value; element.dispatchEvent(new Event('input')); }", value
            )
            page.wait_for_function("before => document.getElementById('sample').src !== before", arg=before)

        change("#label", "3")
        change("#guidance", "2")
        assert page.locator("#guidance-value").inner_text() == "2.00"
        change("#seed", "7")
        assert page.locator("#seed-number").input_value() == "7"
        newest = page.locator("#picture-images").inner_text()
        page.locator("#picture-number").fill("0")
        assert page.locator("#picture-images").inner_text() != newest
        page.locator("#run").select_option("begun")
        page.wait_for_function("document.getElementById('status').textContent === 'running'")
        assert page.locator("#student").is_hidden()
        assert page.locator("#progress").get_attribute("value") == "200"
        assert not errors
        browser.close()
