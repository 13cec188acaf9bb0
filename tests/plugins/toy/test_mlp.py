"""The MLP students: pure functions of one forward, smooth inputs, honest reports, round trips."""

import pytest
import torch
from freeflow_toy.gaussian_mixture import GaussianMixtureTeacher
from freeflow_toy.mlp import MLPPolicyStudent, MLPStudent

from freeflow_core.errors import CheckpointError
from freeflow_core.math.policies import DXPolicy, GMPolicy, roll_policy
from freeflow_core.types import NetworkState


def student(kind=MLPStudent, **options):
    torch.manual_seed(0)
    return kind(kind.options(sample_shape=(3, 2), num_classes=4, width=16, depth=2, **options)).double()


def inputs(num=5):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(num, 3, 2, dtype=torch.float64, generator=generator)
    t = 0.2 + 0.8 * torch.rand(num, dtype=torch.float64, generator=generator)
    return x, t, t / 3, torch.arange(num) % 5, torch.linspace(1, 3, num, dtype=torch.float64)


@pytest.mark.parametrize(("kind", "policy", "outputs"), [("gm", GMPolicy, 7 * 4 + 1), ("dx", DXPolicy, 4 * 6)])
def test_jump_rolls_the_policy_of_one_forward(kind, policy, outputs):
    network = student(MLPPolicyStudent, policy=kind, num_components=4, shift=2.0, num_substeps=16)
    x, t, s, label, w = inputs()
    output = network(x, t, s, label, w)
    assert output.shape == (5, outputs)
    emitted = network.policy(output, x, t, s)
    assert isinstance(emitted, policy)
    expected = roll_policy(emitted, x, t, s, num_substeps=16, shift=2.0)
    torch.testing.assert_close(network.flow_map(x, t, s, label, w), expected)
    again = MLPPolicyStudent.from_state(network.network_state())
    assert torch.equal(again.flow_map(x, t, s, label, w), network.flow_map(x, t, s, label, w))
    network.flow_map(x, t, s, label, w).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize("changed", range(5))
def test_every_input_matters(changed):
    network, arguments = student(), list(inputs())
    before = network(*arguments)
    arguments[changed] = (arguments[changed] + 1) % 5 if changed == 3 else arguments[changed] * 0.7 + 0.1
    assert ((network(*arguments) - before).abs().flatten(1).amax(1) > 1e-6).all()


@pytest.mark.parametrize("kind", [MLPStudent, MLPPolicyStudent])
def test_no_guidance_means_weight_one_and_nothing_comes_from_the_toy_teacher(kind):
    network, (x, t, s, label, _) = student(kind), inputs()
    plain = network.flow_map(x, t, s, label, None)
    torch.testing.assert_close(plain, network.flow_map(x, t, s, label, torch.ones_like(t)))
    report = network.load_teacher(GaussianMixtureTeacher(torch.zeros(1, 3, 2), stds=torch.ones(1)))
    assert (report.taken, set(report.new)) == ((), set(network.state_dict()))


def test_they_start_as_asked():
    x, t, s, label, w = inputs()
    assert torch.equal(student(zero_init=True).flow_map(x, t, s, label, w), x)
    deviation = student(MLPPolicyStudent, initial_std=0.25)(x, t, s, label, w)[:, -1].exp()
    torch.testing.assert_close(deviation, torch.full((5,), 0.25, dtype=torch.float64))


def test_states_that_do_not_fit_are_refused():
    state = student().network_state()
    with pytest.raises(CheckpointError, match="family"):
        MLPPolicyStudent.from_state(state)
    with pytest.raises(CheckpointError, match="of no use"):
        MLPStudent.from_state(NetworkState(state.family, {**state.config, "heads": 3}, state.tensors))
    fewer = {name: value for name, value in state.tensors.items() if name != "head.bias"}
    with pytest.raises(CheckpointError, match=r"head\.bias"):
        MLPStudent.from_state(NetworkState(state.family, state.config, fewer))
