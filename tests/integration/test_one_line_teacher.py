"""A teacher of one line, which casts nothing, is asked alike by every command: in its own dtype, on its own device."""

import json

from run_helpers import TINY, freeflow, sets

from freeflow_core.plugin import Manager

PLUGIN = """
import torch
from torch import nn

from freeflow_core.config import ComponentConfig
from freeflow_core.interfaces import Teacher
from freeflow_core.plugin import Component, hookimpl


class Options(ComponentConfig):
    '''One line.'''


class OneLine(Teacher):
    '''A network as its author calls it.'''

    sample_shape = (2,)

    def __init__(self, config):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2))

    def velocity(self, x_t, t, condition):
        return self.net(torch.cat([x_t, t[:, None]], 1))


@hookimpl
def freeflow_teachers():
    return [Component("one-line", ":OneLine", ":Options")]
"""


def test_it_trains_is_scored_sampled_and_checked(tmp_path):
    plugin, file, run = tmp_path / "one_line.py", tmp_path / "run.yaml", tmp_path / "run"
    plugin.write_text(PLUGIN, "utf-8")

    def ask(*arguments, exit_code=0):
        return freeflow(*arguments, exit_code=exit_code, manager=Manager.load([plugin])).output

    evaluation = {"num_samples": 16, "reference_steps": 2, "evaluators": [{"name": "fidelity"}], "cache": False}
    config = {**TINY, "name": "one", "teacher": {"name": "one-line"}, "codec": "states", "evaluation": evaluation}
    file.write_text(json.dumps(config), "utf-8")
    ask("distill", "--config", file, "--output", run)
    assert "derivative_residual" in json.loads((run / "scores.json").read_text("utf-8"))["student"]
    sampler = ["--sampler", "student-then-teacher", "--steps", 2]
    ask("sample", "--run", run, "--num", 8, "--format", "npz", "--output", tmp_path / "s", *sampler)
    ask("evaluate", "--run", run, *sets("evaluation.reference_sampler=adaptive"))
    checked = ask("teacher", "check", "--teacher", "one-line", "--num", 8, exit_code=None)
    assert "Unexpected" not in checked
    assert "answers" in checked
