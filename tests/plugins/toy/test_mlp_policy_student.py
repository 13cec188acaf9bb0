"""The MLP that emits a policy: what it emits, where its jump leads, round trips."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from freeflow_toy.config import MLPPolicyStudentConfig
from freeflow_toy.gaussian_mixture import GaussianMixtureTeacher
from freeflow_toy.mlp_student import MLPStudent
from freeflow_toy.policy_student import MLPPolicyStudent
from torch import Tensor

from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.interfaces import BuildContext, PolicyStudent
from freeflow_core.math.policies import DXPolicy, GMPolicy, roll_policy


def student(**options: Any) -> MLPPolicyStudent:
    torch.manual_seed(0)
    return MLPPolicyStudent((3, 2), 4, width=16, depth=2, **options).double()


def inputs(num: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(num, 3, 2, dtype=torch.float64, generator=generator)
    t = 0.2 + 0.8 * torch.rand(num, dtype=torch.float64, generator=generator)
    return x, t, t / 3, torch.arange(num) % 5, torch.linspace(1, 3, num, dtype=torch.float64)


@pytest.mark.parametrize(("kind", "policy", "outputs"), [("gm", GMPolicy, 7 * 4 + 1), ("dx", DXPolicy, 4 * 6)])
def test_jump_rolls_the_policy_of_one_forward(kind: Any, policy: type[Any], outputs: int) -> None:
    network, (x, t, s, label, w) = student(policy=kind, num_components=4, shift=2.0, num_substeps=16), inputs()
    assert isinstance(network, PolicyStudent)
    output = network(x, t, s, label, w)
    assert output.shape == (5, outputs)
    emitted = network.policy(output, x, t, s)
    assert isinstance(emitted, policy)
    expected = roll_policy(emitted, x, t, s, num_substeps=16, shift=2.0)
    torch.testing.assert_close(network.flow_map(x, t, s, label, w), expected)
    torch.testing.assert_close(network.flow_map(x, t, t, label, w), x)
    network.flow_map(x, t, s, label, w).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_a_row_is_a_function_of_its_own_inputs() -> None:
    network, (x, t, s, label, w) = student(num_components=4), inputs()
    whole = network.flow_map(x, t, s, label, w)
    part = network.flow_map(x[1:3], t[1:3], s[1:3], label[1:3], w[1:3])
    torch.testing.assert_close(whole[1:3], part)


def test_the_mixture_starts_as_wide_as_asked() -> None:
    network, (x, t, s, label, w) = student(initial_std=0.25), inputs()
    assert torch.allclose(network(x, t, s, label, w)[:, -1].exp(), torch.tensor(0.25, dtype=torch.float64))


def test_numbers_of_the_paper_unless_asked_otherwise() -> None:
    context = BuildContext(torch.device("cpu"), 0, lambda *_: None)
    for kind, components in (("gm", 32), ("dx", 10)):
        built = MLPPolicyStudent.from_config(MLPPolicyStudentConfig(policy=kind, sample_shape=(2,)), context)
        assert built.network_state().config["num_components"] == components
        assert (built.num_substeps, built.shift) == (128, 1.0)
    with pytest.raises(ConfigError, match="mlp-policy student takes its state's dimensions from the teacher"):
        MLPPolicyStudent.from_config(MLPPolicyStudentConfig(), context)


@pytest.mark.parametrize("kind", ["gm", "dx"])
def test_round_trip_through_its_state(kind: Any) -> None:
    network, arguments = student(policy=kind, num_components=3, shift=1.5), inputs()
    again = MLPPolicyStudent.from_state(network.network_state())
    assert again.shift == 1.5
    assert torch.equal(again.flow_map(*arguments), network.flow_map(*arguments))


def test_takes_nothing_from_the_toy_teacher_and_refuses_another_network() -> None:
    network = student()
    report = network.load_teacher(GaussianMixtureTeacher(torch.zeros(1, 3, 2), stds=torch.ones(1)))
    assert report.taken == ()
    assert set(report.new) == set(network.state_dict())
    with pytest.raises(CheckpointError, match="mlp-policy student needs a network of the family"):
        MLPPolicyStudent.from_state(MLPStudent((2,), None).network_state())
