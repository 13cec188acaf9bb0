"""A few real steps on from a published student."""

import torch
from run_helpers import TINY

from freeflow_core.config import load_run_config
from freeflow_core.engine.build import Builder, build_components
from freeflow_core.engine.process import start_accelerator
from freeflow_core.engine.state import build_state
from freeflow_core.engine.trainer import Trainer
from freeflow_core.evaluation.student_file import load_student, save_student

SMALL = {"initialise": "random", "depth": 1, "width": 24, "num_heads": 2, "patch_size": 8, "num_classes": 5}


def train(registry, path, **parts):
    """Two steps; the student as its file gives it back."""
    config = load_run_config(registry, "distill", overrides=TINY | {"student": "transformer"} | parts)
    accelerator = start_accelerator(config.runtime)
    components = build_components(Builder(registry, accelerator.device, config.seed), config)
    state = build_state(config, components, accelerator)
    trainer = Trainer(config, components, state, accelerator)
    for _ in range(2):
        trainer.step()
    save_student(path, config, components.student, 16)
    student = load_student(path, registry).student
    assert all(parameter.isfinite().all() for parameter in student.parameters())
    return student


def test_on_from_a_published_student(registry, released_tensors, tmp_path):
    """Its convention stays, its weights move, and what comes out can be published again."""
    shape = {"sample_shape": (4, 32, 32), "patch_size": 8, "num_classes": 5, "depth": 1}
    published = released_tensors("freeflow", **shape)
    torch.save(published, tmp_path / "student.pt")
    student = train(
        registry,
        tmp_path / "student.safetensors",
        teacher={"name": "sit", **SMALL, "width": 48},
        student={"name": "freeflow", "checkpoint": str(tmp_path / "student.pt"), "num_heads": 3},
    )
    assert student.network.config.sign == "data-minus-noise"
    student.export(tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert {name: t.shape for name, t in again.items()} == {name: t.shape for name, t in published.items()}
    moved = [name for name in again if not torch.equal(again[name], published[name])]
    assert "blocks.0.attn.qkv.weight" in moved
    distance = sum((again[name] - published[name]).norm() for name in again) / sum(t.norm() for t in published.values())
    assert distance < 0.1
