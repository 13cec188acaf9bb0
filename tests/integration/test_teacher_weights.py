"""The frozen teacher's weights in bf16: the same run in a bf16 run, half of their memory, and where it makes no sense."""

import pytest
import torch
from run_helpers import TINY_SIT

from freeflow_core import api
from freeflow_core.engine.blocks import blocks, hold_in_bf16
from freeflow_core.errors import ConfigError
from freeflow_core.network_file import load_tensors

HALF = "runtime.teacher_weights=bf16"
SMALL = (
    "training.images=48", "training.batch_size=16", "evaluation.enabled=false", "trackers=[]", "reference=null",
    "samples.every_images=null", "runtime.threads=1", "objective.guidance_max=2",
)  # fmt: skip


def resolved(manager, *settings, **overrides):
    overrides = {"teacher": TINY_SIT, **overrides}
    return api.resolve_config(
        "distill", preset="digits", overrides=overrides, settings=(*SMALL, *settings), manager=manager
    )


def test_a_bf16_run_stays_the_same_to_the_bit(manager, tmp_path):
    found = {}
    for name, settings in {"whole": (), "half": (HALF,)}.items():
        config = resolved(manager, "runtime.precision=bf16", "objective.derivative=central", *settings)
        run = api.distill(config, output=tmp_path / name, manager=manager)
        found[name] = load_tensors(run.files["student"])[0]
    assert found["whole"].keys() == found["half"].keys()
    for name, tensor in found["whole"].items():
        assert tensor.equal(found["half"][name]), name


def test_a_rounded_teacher_gives_the_working_dtype(manager):
    teacher = api.load_teacher("sit", options={k: v for k, v in TINY_SIT.items() if k != "name"}, manager=manager)
    x, t, labels = torch.randn(3, *teacher.sample_shape), torch.tensor([0.1, 0.5, 0.9]), torch.tensor([1, 2, 10])
    exact = teacher.velocity(x, t, labels)
    assert hold_in_bf16(teacher) > 0
    rounded = teacher.velocity(x, t, labels)
    assert rounded.dtype == torch.float32
    assert {p.dtype for block in blocks(teacher) for p in block.parameters()} == {torch.bfloat16}
    assert 0 < (rounded - exact).abs().mean() < 0.02 * exact.abs().mean()


def test_the_plan_knows_it(manager):
    whole, half = (api.plan(resolved(manager, *settings), manager=manager) for settings in ((), (HALF,)))
    saved = whole.network("teacher").weights - half.network("teacher").weights
    assert whole.network("teacher").parameters == half.network("teacher").parameters
    assert 0.15 * whole.network("teacher").weights < saved <= 0.5 * whole.network("teacher").weights
    assert whole.network("student") == half.network("student")


@pytest.mark.parametrize(
    ("overrides", "settings", "told"),
    [
        ({"teacher": "gaussian-mixture", "student": "mlp"}, (), "gaussian-mixture.*none"),
        ({"student": {"name": "wrapped", "lora_rank": 2}}, (), "together"),
        ({}, ("runtime.precision=float64",), "float64"),
    ],
)
def test_where_it_makes_no_sense_it_is_refused(manager, tmp_path, overrides, settings, told):
    with pytest.raises(ConfigError, match=told):
        api.distill(resolved(manager, HALF, *settings, **overrides), output=tmp_path / "run", manager=manager)
    assert not (tmp_path / "run").exists()
