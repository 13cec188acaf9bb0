from dataclasses import replace

import pytest
import torch
from freeflow_transformers.config import DigitsTeacherConfig, SiTTeacherConfig
from freeflow_transformers.students import FlowMapTransformer, VelocityTransformer
from freeflow_transformers.teachers import TransformerTeacher
from freeflow_transformers.weights import transformer_state

from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.network_file import save_network, save_tensors

T = torch.tensor([1.0, 0.8, 0.3, 0.1], dtype=torch.float64)
LABELS = torch.tensor([0, 4, 2, 1])


def sit(path, context):
    return TransformerTeacher.from_config(SiTTeacherConfig(checkpoint=path), context)


def test_a_teacher_without_classes_or_null_class(make_network):
    unconditional = TransformerTeacher(make_network(num_classes=0))
    assert unconditional.num_classes is None
    assert unconditional.sample_condition(PhiloxDraws(0, torch.arange(3))) is None
    assert unconditional.balanced_condition(torch.arange(3)) is None
    with pytest.raises(ConfigError, match="cannot be guided"):
        unconditional.null_condition(None)
    with pytest.raises(ConfigError, match="cannot be guided"):
        TransformerTeacher(make_network(null_class=False)).null_condition(LABELS)


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
    with pytest.raises(CheckpointError, match="no checkpoint"):
        sit(path, context)
    state = transformer_state(make_network())
    save_network(path, state, {})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        sit(path, context)
    save_tensors(path, {"encoder.weight": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"holds no diffusion transformer.*encoder\.weight"):
        sit(path, context)
    for family, changes, message in (
        ("toy-mlp", {}, r"family 'toy-mlp'; expected 'diffusion-transformer'"),
        (state.family, {"num_heads": 7}, "does not describe"),
        (state.family, {"sample_shape": [3, 4, 6]}, r"weight is \(24, 2, 2, 2\), not \(24, 3, 2, 2\)"),
        (state.family, {"depth": 3}, r"missing: blocks\.2\.adaLN_modulation\.1\.bias"),
    ):
        save_network(path, replace(state, family=family, config=state.config | changes), {})
        with pytest.raises(CheckpointError, match=message):
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
