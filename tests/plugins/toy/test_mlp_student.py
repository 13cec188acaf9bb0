"""The MLP student as a student: pure functions of one forward, smooth inputs, honest reports, round trips."""

import pytest
import torch
from freeflow_toy.gaussian_mixture import GaussianMixtureTeacher
from freeflow_toy.mlp_student import MLPStudent

from freeflow_core.errors import CheckpointError
from freeflow_core.types import NetworkState


def student(**options):
    torch.manual_seed(0)
    return MLPStudent((3, 2), 4, width=16, depth=2, **options).double()


def inputs(n=5):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 3, 2, dtype=torch.float64, generator=generator)
    t = torch.rand(n, dtype=torch.float64, generator=generator)
    return x, t, t / 3, torch.arange(n) % 5, torch.linspace(1, 3, n, dtype=torch.float64)


def test_jump_follows_the_average_velocity():
    network, (x, t, s, label, w) = student(), inputs()
    u = network.average_velocity(network(x, t, s, label, w), x, t, s)
    expected = x - (t - s)[:, None, None] * u
    torch.testing.assert_close(network.flow_map(x, t, s, label, w), expected)
    torch.testing.assert_close(network.flow_map(x, t, t, label, w), x)


@pytest.mark.parametrize("changed", range(5))
def test_every_input_matters(changed):
    network, arguments = student(), list(inputs())
    before = network(*arguments)
    arguments[changed] = (arguments[changed] + 1) % 5 if changed == 3 else arguments[changed] * 0.7 + 0.1
    assert ((network(*arguments) - before).abs().flatten(1).amax(1) > 1e-6).all()


def test_no_guidance_means_weight_one_and_rows_are_independent():
    network, (x, t, s, label, _) = student(), inputs()
    whole = network(x, t, s, label, None)
    torch.testing.assert_close(whole, network(x, t, s, label, torch.ones_like(t)))
    torch.testing.assert_close(whole[2:4], network(x[2:4], t[2:4], s[2:4], label[2:4], None))


def test_forward_mode_in_time_agrees_with_differences():
    network, (x, t, s, label, w) = student(), inputs()
    h = 1e-6
    exact = torch.func.jvp(lambda s: network(x, t, s, label, w), (s,), (torch.ones_like(s),))[1]
    difference = (network(x, t, s + h, label, w) - network(x, t, s - h, label, w)) / (2 * h)
    torch.testing.assert_close(exact, difference, rtol=1e-6, atol=1e-8)


def test_zero_init_starts_as_the_identity():
    network, (x, t, s, label, w) = student(zero_init=True), inputs()
    assert torch.equal(network.flow_map(x, t, s, label, w), x)


def test_takes_nothing_from_the_toy_teacher_and_says_so():
    network = student()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    report = network.load_teacher(GaussianMixtureTeacher(torch.zeros(1, 3, 2), stds=torch.ones(1)))
    assert report.taken == ()
    assert set(report.new) == set(before)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert str(report).startswith("0 tensors taken from the teacher")


def test_round_trip_through_its_state():
    network, arguments = student(zero_init=False), inputs()
    again = MLPStudent.from_state(network.network_state())
    assert torch.equal(again(*arguments), network(*arguments))


def test_states_that_do_not_fit_are_refused():
    state = student().network_state()
    with pytest.raises(CheckpointError, match="family"):
        MLPStudent.from_state(NetworkState("other", state.config, state.tensors))
    with pytest.raises(CheckpointError, match="not usable"):
        MLPStudent.from_state(NetworkState(state.family, {**state.config, "heads": 3}, state.tensors))
    fewer = {name: value for name, value in state.tensors.items() if name != "head.bias"}
    with pytest.raises(CheckpointError, match=r"missing: head\.bias"):
        MLPStudent.from_state(NetworkState(state.family, state.config, fewer))


def test_labels_are_required():
    network, (x, t, s, _, _) = student(), inputs()
    with pytest.raises(ValueError, match="labels"):
        network(x, t, s, None, None)
