import importlib.resources
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from freeflow_transformers.config import DigitsTeacherConfig, SiTTeacherConfig
from freeflow_transformers.students import FlowMapTransformer, VelocityTransformer
from freeflow_transformers.teachers import DIGITS_ASSET, TransformerTeacher
from freeflow_transformers.weights import transformer_state

from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.network_file import save_network, save_tensors

T = torch.tensor([1.0, 0.8, 0.3, 0.1], dtype=torch.float64)
LABELS = torch.tensor([0, 4, 2, 1])


def sit(path: Path, context: Any) -> TransformerTeacher:
    return TransformerTeacher.from_config(SiTTeacherConfig(checkpoint=path), context)


@torch.no_grad()
@pytest.mark.parametrize("weights", [[2.5, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
def test_guidance_asks_for_unconditional_rows_only_where_needed(teacher, states, weights):
    rows: list[int] = []
    x, weight = states(4), torch.tensor(weights, dtype=torch.float64)
    conditional, unconditional = (teacher.velocity(x, T, c) for c in (LABELS, torch.full_like(LABELS, 5)))
    expected = unconditional + weight.float().reshape(-1, 1, 1, 1) * (conditional - unconditional)
    handle = teacher.network.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    guided = teacher.guided_velocity(x, T, LABELS, weight)
    handle.remove()
    torch.testing.assert_close(guided, expected, rtol=1e-5, atol=1e-6)
    assert rows == [4 + sum(w != 1 for w in weights)]


def test_conditions(teacher):
    assert teacher.null_condition(LABELS).tolist() == [5, 5, 5, 5]  # type: ignore[union-attr]
    assert teacher.balanced_condition(torch.arange(7)).tolist() == [0, 1, 2, 3, 4, 0, 1]  # type: ignore[union-attr]
    draws = PhiloxDraws(0, torch.arange(2000))
    labels = teacher.sample_condition(draws)
    assert isinstance(labels, torch.Tensor)
    assert (torch.bincount(labels) / 2000 - 0.2).abs().max() < 0.03
    assert torch.equal(labels, draws.integers("label", 5))


def test_a_teacher_without_classes_or_null_class(make_network):
    unconditional = TransformerTeacher(make_network(num_classes=0))
    assert unconditional.num_classes is None
    assert unconditional.sample_condition(PhiloxDraws(0, torch.arange(3))) is None
    assert unconditional.balanced_condition(torch.arange(3)) is None
    with pytest.raises(ConfigError, match="cannot be guided"):
        unconditional.null_condition(None)
    with pytest.raises(ConfigError, match="cannot be guided"):
        TransformerTeacher(make_network(null_class=False)).null_condition(LABELS)


def test_a_teacher_is_frozen(teacher, states):
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher.network.training
    assert not teacher.velocity(states(4), T, LABELS).requires_grad


@torch.no_grad()
def test_sit_is_the_network_that_was_pretrained(make_network, make_context, states, tmp_path):
    student = VelocityTransformer(make_network(learn_sigma=True))
    save_network(tmp_path / "student.safetensors", student.network_state(), {"name": "a run"})
    teacher = sit(tmp_path / "student.safetensors", make_context())
    x = states(4)
    assert (teacher.sample_shape, teacher.num_classes) == ((2, 4, 6), 5)
    assert torch.equal(teacher.velocity(x, T, LABELS), student(x, T, T, LABELS, None)[:, :2])
    state = teacher.network_state()
    assert state.config == student.network_state().config
    assert all(torch.equal(tensor, student.network.state_dict()[name]) for name, tensor in state.tensors.items())


def test_files_that_are_no_teacher(make_network, make_context, tmp_path):
    context, path = make_context(), tmp_path / "teacher.safetensors"
    with pytest.raises(CheckpointError, match="no checkpoint file"):
        sit(path, context)
    state = transformer_state(make_network())
    save_network(path, state, {})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        sit(path, context)
    save_tensors(path, {"encoder.weight": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"holds no diffusion transformer.*encoder\.weight"):
        sit(path, context)
    save_network(path, replace(state, family="toy-mlp"), {})
    with pytest.raises(CheckpointError, match=r"family 'toy-mlp'; expected 'diffusion-transformer'"):
        sit(path, context)
    save_network(path, replace(state, config={**state.config, "num_heads": 7}), {})
    with pytest.raises(CheckpointError, match="does not describe"):
        sit(path, context)
    save_network(path, replace(state, config={**state.config, "sample_shape": [3, 4, 6]}), {})
    with pytest.raises(CheckpointError, match=r"x_embedder\.proj\.weight is \(24, 2, 2, 2\), expected \(24, 3, 2, 2\)"):
        sit(path, context)
    save_network(path, replace(state, config={**state.config, "depth": 3}), {})
    with pytest.raises(CheckpointError, match=r"missing: blocks\.2\.adaLN_modulation\.1\.bias"):
        sit(path, context)


def test_a_student_is_no_teacher(make_network, make_context, tmp_path):
    with pytest.raises(ConfigError, match="distilled student"):
        TransformerTeacher(make_network(guidance=True))
    path = tmp_path / "student.safetensors"
    save_network(path, FlowMapTransformer(make_network(jump=True)).network_state(), {})
    with pytest.raises(CheckpointError, match=r"student\.safetensors cannot be a teacher.*distilled student"):
        sit(path, make_context())


def test_digits_takes_another_checkpoint(make_network, make_context, tmp_path):
    save_network(tmp_path / "other.safetensors", transformer_state(make_network()), {})
    config = DigitsTeacherConfig(checkpoint=tmp_path / "other.safetensors")
    assert TransformerTeacher.from_config(config, make_context()).sample_shape == (2, 4, 6)


@pytest.mark.skipif(
    not importlib.resources.files("freeflow_transformers").joinpath(DIGITS_ASSET).is_file(),
    reason="the digits weights are not part of this checkout",
)
@torch.no_grad()
def test_the_shipped_digits_teacher_denoises(make_context):
    """At t near 1 the best guess of n - x from noise alone is n minus a mean image: far better than zero."""
    teacher = TransformerTeacher.from_config(DigitsTeacherConfig(), make_context())
    assert (teacher.sample_shape, teacher.num_classes) == ((1, 8, 8), 10)
    x = torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.full((200,), 0.999)
    for labels in (torch.arange(200) % 10, torch.full((200,), 10)):
        mean = x - teacher.velocity(x, t, labels)
        assert mean.std(0).mean() < 0.6 * x.std()
        assert -1.5 < mean.mean() < 0.5
