"""Scores, pictures and searches sample in the precision of the run."""

import pytest
import torch
from freeflow_transformers.network import DiffusionTransformer

from freeflow_core import api
from freeflow_core.evaluation.sampling import Generator

SMALL = (
    *("training.images=16", "training.batch_size=8", "evaluation.num_samples=10", "evaluation.batch_size=10"),
    *("evaluation.reference_steps=2", "evaluation.jump_steps=1", "evaluation.evaluators=[spread]"),
    *("samples.per_class=1", "runtime.device=cpu", "trackers=[]"),
)


@pytest.fixture
def seen(monkeypatch):
    """Of every pass of a transformer that samples: the type of its weights, and whether bf16 autocast was on."""
    found, sampling = set(), []
    batch = Generator.batch

    def watched(self, *arguments, **named):
        sampling.append(True)
        try:
            return batch(self, *arguments, **named)
        finally:
            sampling.pop()

    def note(module, inputs):
        if sampling and isinstance(module, DiffusionTransformer):
            found.add((next(module.parameters()).dtype, torch.is_autocast_enabled("cpu")))

    monkeypatch.setattr(Generator, "batch", watched)
    handle = torch.nn.modules.module.register_module_forward_pre_hook(note)
    yield found
    handle.remove()


EXPECTED = {"bf16": {(torch.float32, True)}, "float64": {(torch.float64, False)}}


@pytest.mark.parametrize("precision", ["bf16", "float64"])
def test_the_run_its_scores_and_what_comes_later(precision, seen, manager, tmp_path):
    settings = (*SMALL, f"runtime.precision={precision}", "objective.derivative=forward-mode")
    config = api.resolve_config("distill", preset="digits", settings=settings, manager=manager)
    result = api.distill(config, output=tmp_path / "run", manager=manager)
    assert set(result.scores) == {"data", "teacher_floor", "teacher", "teacher_1_step", "student", "student_jump"}
    assert seen == EXPECTED[precision]
    seen.clear()
    api.evaluate(config, student=tmp_path / "run", manager=manager)
    assert seen == EXPECTED[precision]
    seen.clear()
    api.search(
        config, student=tmp_path / "run", candidates=2, num=2, steps=1, output=tmp_path / "search", manager=manager
    )
    assert seen == EXPECTED[precision]
