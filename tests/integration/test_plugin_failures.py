"""What fails in somebody's code is told as theirs: plugin, distribution, method, file and line, whenever it happens."""

import importlib
import json
import sys

import pytest
from run_helpers import TINY, freeflow

from freeflow_core.plugin import Manager

PARTS = '''
import torch

from freeflow_core.config import ComponentConfig
from freeflow_core.interfaces import Evaluator, Objective, Teacher
from freeflow_core.math.flow import mean_square
from freeflow_core.types import Loss


class Options(ComponentConfig):
    """Which call fails."""

    fails: str = ""
    """The call."""


class Part:
    def __init__(self, config):
        super().__init__()
        self.fails, self.sample_shape = config.fails, (2,)
        if self.fails == "init":
            raise KeyError("no such thing")  # line init


class Field(Part, Teacher):
    def velocity(self, x_t, t, condition):
        if self.fails == "first" or (self.fails == "late" and float(t.min()) == 0.25):
            return x_t @ torch.ones(5, 5)  # line velocity
        return x_t * 0 + x_t - 1


class Regress(Part, Objective):
    def losses(self, models, batch, draws, progress, context):
        x = draws.noise("prior", (2,))
        one = torch.ones(len(x))
        if progress.step == 3:
            return {"student": {}["missing"]}  # line losses
        return {"student": Loss(mean_square(models["student"].wrapped(x, one, 0 * one, None, None)))}


class Count(Part, Evaluator):
    def prepare(self, context):
        pass

    def reset(self, subject):
        pass

    def update(self, batch):
        pass

    def compute(self):
        return {"count": 1 / 0}  # line compute
'''
PLUGIN = """
from freeflow_core.plugin import Component, hookimpl


@hookimpl
def freeflow_teachers():
    return [Component("field", ".parts:Field", ".parts:Options"), Component("lost", ".lost:Field", ".parts:Options")]


@hookimpl
def freeflow_objectives():
    return [Component("regress", ".parts:Regress", ".parts:Options")]


@hookimpl
def freeflow_evaluators():
    return [Component("count", ".parts:Count", ".parts:Options")]
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A plugin's package on the path."""
    folder = tmp_path / "failing_flow"
    folder.mkdir()
    for name, text in {"__init__": "", "parts": PARTS, "plugin": PLUGIN, "lost": "\n\nField = undefined\n"}.items():
        (folder / f"{name}.py").write_text(text, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "failing_flow"]:
        del sys.modules[name]


@pytest.fixture
def told(package, tmp_path, monkeypatch):
    """What ``freeflow distill`` says."""
    monkeypatch.setenv("COLUMNS", "4000")

    def run(**changes):
        manager = Manager.load()
        manager.register(importlib.import_module("failing_flow.plugin"), "failing", "failing-flow", "0.3")
        (tmp_path / "run.yaml").write_text(json.dumps({**TINY, "name": "x", "codec": "states", **changes}), "utf-8")
        arguments = ["distill", "--config", tmp_path / "run.yaml", "--output", tmp_path / "run"]
        return " ".join(freeflow(*arguments, exit_code=1, manager=manager).output.split())

    return run


EVALUATION = {"num_samples": 8, "reference_steps": 2, "cache": False}
SAMPLER = {"reference_sampler": {"name": "euler"}, "reference_steps": 4}
FAILURES = {
    "velocity": {"teacher": {"name": "field", "fails": "late"}, "evaluation": EVALUATION | SAMPLER},
    "losses": {"objective": {"name": "regress"}},
    "compute": {"evaluation": EVALUATION | {"evaluators": [{"name": "count"}]}},
    "init": {"teacher": {"name": "field", "fails": "init"}},
}
METHODS = {"velocity": "Field.velocity()", "losses": "Regress.losses()", "compute": "Count.compute()", "init": "Part."}


@pytest.mark.parametrize("call", FAILURES)
def test_a_failure_at_any_time_names_its_place(told, package, call):
    said = told(**FAILURES[call])
    file = package / "parts.py"
    line = PARTS.split("\n").index(next(text for text in PARTS.split("\n") if f"# line {call}" in text)) + 1
    assert "'failing' (failing-flow 0.3)" in said
    assert METHODS[call] in said
    assert f"{file}, line {line}" in said
    assert "bug report" not in said


@pytest.mark.parametrize("asked", [{}, {"evaluation": {**EVALUATION, "evaluators": ["fidelity"]}}])
def test_a_failure_of_the_first_question_names_its_place_too(told, package, asked):
    said = told(teacher={"name": "field", "fails": "first"}, **asked)
    assert "'failing' (failing-flow 0.3)" in said
    assert "Field.velocity()" in said
    assert str(package / "parts.py") in said


def test_a_component_that_cannot_be_imported_names_its_place(told, package):
    said = told(teacher={"name": "lost"})
    assert f"NameError: name 'undefined' is not defined (in {package / 'lost.py'}, line 3)" in said


def test_a_plugin_that_cannot_be_loaded_names_its_place(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("import math\n\nx = math.sqrt(-1)\n", "utf-8")
    with pytest.raises(Exception, match=r"broken\.py, line 3"):
        Manager.load([file])
    file.write_text("x = (\n", "utf-8")
    with pytest.raises(Exception, match=r"broken\.py, line 1"):
        Manager.load([file])


def test_our_own_failures_stay_for_a_bug_report(monkeypatch):
    import freeflow_core.api as api

    monkeypatch.setattr(api, "check_teacher", lambda *a, **o: json.loads("{"))
    said = " ".join(freeflow("teacher", "check", "--teacher", "digits", exit_code=1).output.split())
    assert "JSONDecodeError" in said
    assert "bug report" in said
