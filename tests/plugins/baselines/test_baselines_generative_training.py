"""Short runs through the engine: however a batch is split and a run is cut, the same student comes out."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from freeflow_core import api
from freeflow_core.config import load_run_config
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import StartTimes
from freeflow_core.plugin import Manager, Registry
from freeflow_core.types import Guidance

MIXTURE = {"name": "gaussian-mixture", "layout": "ring", "num_classes": 4}
POLICY = {"name": "mlp-policy", "width": 16, "depth": 1, "num_components": 3, "num_substeps": 4}
MLP = {"name": "mlp", "width": 16, "depth": 1}
GUIDED = {"guidance_max": 2.0}
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "pi-flow": ({"name": "pi-flow", "num_segments": 2, **GUIDED}, POLICY, True),
    "pi-flow-prior": ({"name": "pi-flow", "states": "prior", "num_segments": 2, **GUIDED}, POLICY, False),
    "imm": ({"name": "imm"}, MLP, True),
    "imm-teacher": ({"name": "imm", "velocity": "teacher", "label_kernel": "same", **GUIDED}, MLP, True),
    "score-distillation": ({"name": "score-distillation", "critic_updates": 3, **GUIDED}, MLP, False),
    "pairs": ({"name": "pairs", "solver_steps": 2, **GUIDED}, MLP, False),
    "pairs-policy": ({"name": "pairs", "solver_steps": 2}, POLICY, False),
    "rectified-flow": ({"name": "pairs", "mode": "rectified-flow", "solver_steps": 2}, MLP, False),
    "progressive": ({"name": "progressive", "start_steps": 4, **GUIDED}, MLP, True),
}


def train(
    name: str, registry: Registry, manager: Manager, output: Path, *assignments: str, resume: bool = False
) -> dict[str, torch.Tensor]:
    """Weights of the student after 96 images in float64."""
    objective, student, data = RUNS[name]
    settings = {
        "name": "short",
        "teacher": MIXTURE,
        "student": student,
        "objective": objective,
        "source": MIXTURE if data else {"name": "prior"},
        "codec": {"name": "states"},
        "training": {"images": 96, "batch_size": 16, "optimizer": {"learning_rate": 1e-3}},
        "evaluation": {"enabled": False},
        "runtime": {"device": "cpu", "threads": 1, "precision": "float64"},
    }
    config = load_run_config(registry, "distill", overrides=settings, assignments=assignments)
    result = api.distill(config, output=output, resume=resume, manager=manager)
    return dict(api.load_student(result.folder, manager=manager).student.state_dict())


@pytest.mark.parametrize("name", RUNS)
def test_micro_batches_and_a_restart_change_nothing(
    name: str, registry: Registry, manager: Manager, tmp_path: Path
) -> None:
    whole = train(name, registry, manager, tmp_path / "whole")
    split = train(name, registry, manager, tmp_path / "split", "training.accumulation=4")
    train(name, registry, manager, tmp_path / "cut", "training.stop_at_images=64")
    resumed = train(name, registry, manager, tmp_path / "cut", resume=True)
    for key, tensor in whole.items():
        torch.testing.assert_close(tensor, split[key], rtol=1e-5, atol=1e-6)
        assert torch.equal(tensor, resumed[key]), key


def test_samplers_take_policy_students(registry: Registry, manager: Manager, tmp_path: Path) -> None:
    train("pi-flow", registry, manager, tmp_path / "run")
    student = api.load_student(tmp_path / "run", manager=manager).student
    assert student.start_times is StartTimes.ANY
    z = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    labels, weight = torch.arange(6) % 4, torch.full((6,), 1.5, dtype=torch.float64)
    for steps, name in ((1, "one-step"), (2, "few-step")):
        sampler = manager_sampler(registry, name)
        grid = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        samples = sampler.sample(student, z, grid, labels, Guidance(weight))
        assert samples.num_evaluations == steps  # substeps call no network
        x = z
        for t, s in itertools.pairwise(grid):
            x = student.flow_map(x, t.expand(6), s.expand(6), labels, weight)
        torch.testing.assert_close(samples.x, x)


def manager_sampler(registry: Registry, name: str) -> Any:
    component = registry.component("sampler", name)
    return component.load_target().from_config(component.load_config_class()(), None)


@pytest.mark.parametrize(
    ("objective", "student", "message"),
    [
        ("pi-flow", "mlp", "trains a PolicyStudent, but the student 'mlp' is a MLPStudent"),
        ("imm", "mlp-policy", "trains a AverageVelocityStudent"),
        ("progressive", "mlp-policy", "trains a AverageVelocityStudent"),
    ],
)
def test_students_of_the_wrong_kind_are_refused(
    objective: str, student: str, message: str, registry: Registry, manager: Manager, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(objective, registry, manager, tmp_path / "run", f"student={student}")
