"""A comparison that takes seconds, objectives that misbehave, and what was run."""

from run_helpers import TINY

from freeflow_core.config.compare import load_compare_config
from freeflow_core.plugin import Manager, Registry, hookimpl

BASE = TINY | {
    "codec": "states",
    "evaluation": {
        "num_samples": 32, "batch_size": 32, "every_images": 64, "reference_steps": 4, "jump_steps": 1,
        "evaluators": ["energy-distance", "fidelity"],
    },
}  # fmt: skip

DATA_BASED = {"shortcut", "eulerian", "pi-flow"}

PLUGIN = '''
import os
import signal
import torch
from pathlib import Path
from pydantic import Field
from freeflow_core.config import ComponentConfig
from freeflow_core.interfaces import Objective
from freeflow_core.plugin import Component, hookimpl
from freeflow_core.types import Loss

class Config(ComponentConfig):
    """What to do, and when."""
    at_image: int = Field(32, description="when")
    action: str = Field("raise", description="raise, interrupt, fill-disk or none")
    only_once: str | None = Field(None, description="file that says it was done")

class Troubled(Objective):
    """Trains to zero, until something happens. Measuring takes images from 0 on, so it waits for a run's folder."""

    def __init__(self, config):
        self._config = config

    def roles(self, student, teacher):
        return {}

    def losses(self, models, batch, draws, progress, context):
        if progress.images == self._config.at_image and armed():
            self._happen()
        z = draws.noise("prior", (2,))
        output = models["student"].wrapped(z, torch.ones(len(z)), torch.zeros(len(z)), batch.condition, None)
        return {"student": Loss(output.square().mean(1))}

    def _happen(self):
        if self._config.only_once is not None:
            if Path(self._config.only_once).exists():
                return
            Path(self._config.only_once).touch()
        if self._config.action == "raise":
            raise RuntimeError("something\\nbroke")
        if self._config.action == "interrupt":
            signal.raise_signal(signal.SIGINT)
        if self._config.action == "fill-disk":
            raise OSError(28, os.strerror(28))

def armed():
    """Whether a run, rather than a measurement, is under way."""
    import inspect
    return any(frame.function == "execute" and "run.py" in frame.filename for frame in inspect.stack())

@hookimpl
def freeflow_objectives():
    return [Component("troubled", "freeflow_file_troubled:Troubled", "freeflow_file_troubled:Config", "breaks")]
'''


def troubled_manager(folder):
    """All plugins, and the objective ``troubled``."""
    file = folder / "troubled.py"
    file.write_text(PLUGIN, "utf-8")
    return Manager.load([file])


def comparison(manager, *objectives, assignments=(), **section):
    """A small comparison; ``section`` holds seeds, budget, sweep and the rest. There are data where they are used."""
    source = {"source": {"name": "gaussian-mixture"}} if DATA_BASED & set(objectives) else {}
    return load_compare_config(
        Registry(manager),
        overrides={**BASE, **source},
        comparison={"objectives": objectives, "seeds": 2, "budget": "images=64", **section},
        assignments=assignments,
    )


class Watcher:
    """An observer: which runs began and ended, and which rows were scored in them."""

    def __init__(self):
        self.started: list[str] = []
        self.finished: list[tuple[str, str]] = []
        self.scored: list[tuple[str, str]] = []

    @hookimpl
    def freeflow_run_started(self, run):
        self.started.append(run.name)

    @hookimpl
    def freeflow_evaluation_advanced(self, run, row, done, total):
        if done == total:
            self.scored.append((run.name, row))

    @hookimpl
    def freeflow_run_finished(self, run, status):
        self.finished.append((run.name, status))
