"""The transformer that emits a policy: it starts from its teacher, and its jump rolls what it emits."""

import pytest
import torch
from freeflow_transformers.config import PolicyTransformerConfig
from freeflow_transformers.policy import PolicyTransformer
from freeflow_transformers.students import FlowMapTransformer
from freeflow_transformers.teachers import TransformerTeacher

from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.interfaces import PolicyStudent
from freeflow_core.math.policies import DXPolicy, GMPolicy, roll_policy
from freeflow_core.testing.exact import GaussianTeacher
from freeflow_core.types import NetworkState

LABELS = torch.tensor([0, 4, 5])
T = torch.tensor([1.0, 0.8, 0.3], dtype=torch.float64)
S = torch.tensor([0.0, 0.4, 0.1], dtype=torch.float64)
WEIGHT = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)


def policy_student(context, **options):
    return PolicyTransformer.from_config(PolicyTransformerConfig(**{"std_width": 16, **options}), context)


def emitted(student, x):
    return student.policy(student(x, T, S, LABELS, WEIGHT), x, T, S)


@pytest.mark.parametrize("convention", [{}, {"sign": "data-minus-noise", "time_direction": "data-at-1"}])
@pytest.mark.parametrize("learn_sigma", [False, True])
@torch.no_grad()
def test_every_velocity_starts_as_the_teachers(make_network, make_context, states, convention, learn_sigma):
    teacher = TransformerTeacher(make_network(learn_sigma=learn_sigma, **convention))
    x, v = states(3), teacher.velocity(states(3), T, LABELS)
    for kind, components in (("dx", 4), ("gm", 5)):
        student = policy_student(make_context(teacher), policy=kind, num_components=components, mean_noise=0.0)
        report = student.load_teacher(teacher)
        velocities = emitted_velocities(student, x)
        assert velocities.shape == (3, components, 2, 4, 6)
        torch.testing.assert_close(velocities, v.unsqueeze(1).expand_as(velocities), rtol=1e-5, atol=1e-5)
        assert set(report.taken) == set(teacher.network.state_dict())
        names = {name.split(".")[0] + name.partition("log_std")[1] for name in report.new}
        assert names == {"dt_embedder", "gw_embedder"} | ({"final_layerlog_std"} if kind == "gm" else set())
        assert report.left == ()


def emitted_velocities(student, x):
    """(x - points) / t, the emitted policy's own statement of its velocities."""
    policy = emitted(student, x)
    points = policy._points if isinstance(policy, DXPolicy) else policy._means
    return (x.unsqueeze(1) - points) / T.float().reshape(-1, 1, 1, 1, 1)


@torch.no_grad()
def test_components_differ_by_the_noise_asked_for(teacher, make_context, states):
    x = states(3)
    student = policy_student(make_context(teacher), num_components=64, mean_noise=0.2, initial_std=0.1)
    student.load_teacher(teacher)
    spread = emitted_velocities(student, x) - teacher.velocity(x, T, LABELS).unsqueeze(1)
    torch.testing.assert_close(spread, spread[:1, :, :, :1, :1].expand_as(spread), rtol=1e-4, atol=1e-5)  # one number
    assert 0.15 < float(spread[0, :, :, 0, 0].std()) < 0.25
    logits, log_std = student.head.mixture(student(x, T, S, LABELS, WEIGHT))
    assert logits.shape == (3, 64, 1, 4, 6)
    assert torch.equal(logits, torch.zeros_like(logits))
    torch.testing.assert_close(log_std.exp(), torch.full((3,), 0.1))


@pytest.mark.parametrize(("kind", "policy"), [("gm", GMPolicy), ("dx", DXPolicy)])
def test_jump_rolls_the_policy_and_every_weight_matters(make_network, make_context, states, kind, policy):
    context = make_context(TransformerTeacher(make_network()))
    student = policy_student(context, policy=kind, num_components=3, num_substeps=8, shift=2.0)
    fill_randomly(student)
    assert isinstance(student, PolicyStudent)
    x = states(3)
    emitted_policy = emitted(student, x)
    assert isinstance(emitted_policy, policy)
    expected = roll_policy(emitted_policy, x, T, S, num_substeps=8, shift=2.0)
    reached = student.flow_map(x, T, S, LABELS, WEIGHT)
    torch.testing.assert_close(reached, expected)
    reached.square().mean().backward()
    for name, parameter in student.named_parameters():
        used = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert used or "embedding_table" in name, name


@torch.no_grad()
def test_logits_belong_to_pixels_and_the_deviation_to_the_sample(make_network, make_context, states):
    student = policy_student(make_context(TransformerTeacher(make_network())), num_components=3)
    fill_randomly(student)
    output = student(states(3), T, S, LABELS, WEIGHT)
    assert output.shape == (3, (3 + 2 + 1) * 2, 4, 6)  # 3 velocities, 2 images for 3 logits, 1 for the deviation
    logits, log_std = student.head.mixture(output)
    assert logits[0, 0, 0].unique().numel() > 1
    assert torch.equal(log_std[:, None, None].expand(-1, 4, 6), output[:, -2])
    changed = states(3) + 1
    assert torch.equal(student.head.mixture(student(changed, T, S, LABELS, WEIGHT))[1], log_std)


@torch.no_grad()
def test_its_options_come_back_from_its_state(make_network, make_context, states):
    student = policy_student(make_context(TransformerTeacher(make_network())), policy="dx", shift=1.5, num_substeps=4)
    fill_randomly(student)
    again = PolicyTransformer.from_state(student.network_state())
    arguments = (states(3), T, S, LABELS, WEIGHT)
    assert (again.shift, again.num_substeps) == (1.5, 4)
    assert torch.equal(again.flow_map(*arguments), student.flow_map(*arguments))


def test_networks_that_do_not_fit_are_refused(make_network, make_context, teacher):
    student = policy_student(make_context(teacher))
    state = student.network_state()
    other = FlowMapTransformer(make_network(jump=True)).network_state()
    with pytest.raises(CheckpointError, match="policy-transformer student needs a network of the family"):
        PolicyTransformer.from_state(other)
    with pytest.raises(CheckpointError, match="PolicyOptions"):
        PolicyTransformer.from_state(NetworkState(state.family, {**state.config, "policy": {"k": 1}}, state.tensors))
    fewer = {name: value for name, value in state.tensors.items() if name != "final_layer.linear.bias"}
    with pytest.raises(CheckpointError, match=r"missing: final_layer\.linear\.bias"):
        PolicyTransformer.from_state(NetworkState(state.family, state.config, fewer))
    with pytest.raises(ConfigError, match="depth 3, not 2"):
        policy_student(make_context(teacher), depth=3).load_teacher(teacher)


def test_without_a_transformer_teacher_it_starts_afresh(make_context, teacher):
    plain = GaussianTeacher(torch.zeros(2, 4, 6), torch.tensor(1.0))
    student = policy_student(make_context(plain), width=24, depth=1, num_heads=3, patch_size=2)
    assert student.load_teacher(plain).taken == ()
    random = policy_student(make_context(teacher), initialise="random", depth=1)
    report = random.load_teacher(teacher)
    assert report.taken == ()
    assert set(report.left) == set(teacher.network.state_dict())


def fill_randomly(student):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
