"""pi-Flow on isotropic Gaussian data, whose velocity is a policy of one component exactly."""

import math

import pytest
import torch
from exact_maps import MEAN, PlainStudent, gaussian_data, policy_student
from freeflow_baselines.config import PiFlowConfig
from freeflow_baselines.pi_flow import PiFlow, segment_bounds
from objective_helpers import NO_DATA, TeacherSpy, philox, spied, step
from torch import nn

from freeflow_core.interfaces import PolicyStudent
from freeflow_core.math.flow import expand_times, mean_square
from freeflow_core.math.policies import GMPolicy, roll_policy, shifted_time
from freeflow_core.testing.exact import GaussianTeacher
from freeflow_core.types import Batch

SPREAD = 0.6
SPREADS = torch.tensor(SPREAD, dtype=torch.float64)


class ExactPolicyStudent(PolicyStudent):
    """The exact policy of isotropic Gaussian data N(MEAN, SPREAD^2), its velocities times ``scale`` (trainable)."""

    def __init__(self, scale=1.0, num_substeps=16):
        super().__init__()
        self.sample_shape = tuple(MEAN.shape)
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))
        self.num_substeps = num_substeps

    def forward(self, x_t, t, s, condition, guidance):
        time = expand_times(t, x_t)
        total = (1 - time).square() * SPREAD**2 + time.square()
        posterior = MEAN + (1 - time) * SPREAD**2 / total * (x_t - (1 - time) * MEAN)
        return torch.cat([self.scale * (x_t - posterior) / time, 0.5 * (SPREAD**2 / total).log()], 1)

    def policy(self, output, x_t, t, s):
        return GMPolicy(output[:, None, :-1], torch.zeros(len(x_t), 1, 1, dtype=output.dtype), output[:, -1], x_t, t)

    load_teacher = network_state = PlainStudent.load_teacher  # never asked
    from_state = PlainStudent.from_state


def objective(**options):
    return PiFlow(PiFlowConfig(**options))


def teacher(sign=1.0):
    return TeacherSpy(GaussianTeacher(MEAN, SPREADS), sign)


def batch_for(states, num, start=0):
    return Batch(gaussian_data(num, start, std=SPREADS), None) if states == "data" else NO_DATA


def mlp(**options):
    return policy_student(width=16, depth=2, num_components=4, num_substeps=16, **options)


@pytest.mark.parametrize("states", ["data", "prior"])
@pytest.mark.parametrize("num_segments", [1, 3])
def test_the_exact_policy_is_a_stationary_point_and_a_wrong_sign_is_not(states, num_segments):
    pi_flow = objective(states=states, num_segments=num_segments)
    for sign, scale in ((1.0, 1.0), (-1.0, 1.0), (1.0, -1.0)):
        student = ExactPolicyStudent(scale)
        models, _, _ = spied(teacher(sign), student)
        per_sample = step(pi_flow, models, philox(256), batch_for(states, 256))["student"].per_sample
        per_sample.mean().backward()
        if sign == scale == 1:
            assert per_sample.max() < 1e-24
            assert abs(float(student.scale.grad)) < 1e-11
        else:
            assert per_sample.mean() > 0.1
            assert abs(float(student.scale.grad)) > 0.1


@pytest.mark.parametrize("states", ["data", "prior"])
@pytest.mark.parametrize("kind", ["gm", "dx"])
def test_the_gradient_is_that_of_a_regression_on_fixed_states(states, kind):
    student, exact = mlp(policy=kind), teacher()
    models, wrapped, _ = spied(exact, student)
    pi_flow = objective(states=states, num_states=3, loss_scale=2.0)
    loss = step(pi_flow, models, philox(8), batch_for(states, 8))["student"]
    loss.per_sample.mean().backward()
    found = [parameter.grad.clone() for parameter in student.parameters() if parameter.grad is not None]

    (x, t, s, condition, guidance), (states_seen, times, _, _) = wrapped.calls[0], exact.calls[0]
    student.zero_grad()
    policy = student.policy(student(x, t, s, condition, guidance), x, t, s)
    residual = torch.stack(
        [
            policy.velocity(states_seen[m * 8 : (m + 1) * 8], times[m * 8 : (m + 1) * 8])
            - exact.teacher.velocity(states_seen[m * 8 : (m + 1) * 8], times[m * 8 : (m + 1) * 8], None)
            for m in range(3)
        ]
    )
    expected = torch.stack([mean_square(part) for part in residual]).mean(0)  # 1/2 times loss_scale is 1
    torch.testing.assert_close(loss.per_sample, expected)
    expected.mean().backward()
    for gradient, parameter in zip(found, student.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


@pytest.mark.parametrize("states", ["data", "prior"])
def test_states_lie_where_the_policy_leads_at_rising_distance_from_the_start(states):
    student, exact = mlp(shift=2.0), teacher()
    models, wrapped, _ = spied(exact, student)
    step(objective(states=states, num_states=3, component_dropout=0.0), models, philox(16), batch_for(states, 16))
    (x, t, s, condition, guidance), (reached, times, _, _) = wrapped.calls[0], exact.calls[0]
    policy = student.policy(student(x, t, s, condition, guidance), x, t, s)
    previous_x, previous_t = x, t
    for m in range(3):
        rows = slice(16 * m, 16 * (m + 1))
        assert (times[rows] < previous_t).all()
        assert (times[rows] > s).all()
        expected = roll_policy(policy, previous_x, previous_t, times[rows], num_substeps=16, shift=2.0)
        torch.testing.assert_close(reached[rows], expected, rtol=1e-9, atol=1e-9)
        previous_x, previous_t = reached[rows], times[rows]


def test_times_of_the_states_are_uniform_in_the_segment():
    exact = teacher()
    models, _, _ = spied(exact, ExactPolicyStudent(num_substeps=1))
    step(objective(states="prior", num_states=1), models, philox(4000))
    times = exact.calls[0][1]
    assert abs(float(times.mean()) - 0.5) < 4 * math.sqrt(1 / 12 / 4000)
    assert abs(float(times.var()) - 1 / 12) < 0.005


@pytest.mark.parametrize("states", ["data", "prior"])
def test_one_gradient_pass_through_the_wrapper_and_one_call_of_the_teacher(states):
    for num_segments in (1, 3):
        exact = teacher()
        models, wrapped, bare = spied(exact, mlp())
        step(objective(states=states, num_segments=num_segments), models, philox(8), batch_for(states, 8))
        chain = num_segments if states == "prior" else 1
        assert [len(call[0]) for call in wrapped.calls] == [8 * chain]
        assert wrapped.gradient == [True]
        assert bare.gradient == [False] * (chain - 1)
        assert [len(call[0]) for call in exact.calls] == [2 * 8 * chain]


def test_segments_of_data_are_chosen_by_their_length_and_begin_at_noised_data():
    student = mlp(shift=3.0)
    models, wrapped, _ = spied(teacher(), student)
    num = 4000
    pi_flow = objective(num_segments=3, final_segment_scale=0.5)
    step(pi_flow, models, philox(num), batch_for("data", num))
    x, t, s = wrapped.calls[0][:3]
    bounds = shifted_time(segment_bounds(3, 0.5), 3.0)
    for k, share in enumerate((0.4, 0.4, 0.2)):
        chosen = (t - bounds[k]).abs() < 1e-12
        assert abs(int(chosen.sum()) - share * num) < 4 * math.sqrt(num * share * (1 - share))
        torch.testing.assert_close(s[chosen], bounds[k + 1].expand(int(chosen.sum())))
    noise = philox(num).noise("noise", (3,))
    torch.testing.assert_close(x, (1 - t[:, None]) * batch_for("data", num).x + t[:, None] * noise)


def test_segments_from_noise_follow_each_other_and_count_by_their_length():
    student, exact = mlp(), teacher()
    models, wrapped, _ = spied(exact, student)
    pi_flow = objective(states="prior", num_segments=2, final_segment_scale=0.5, component_dropout=0.0, num_states=1)
    loss = step(pi_flow, models, philox(6))["student"]
    x, t, s, condition, guidance = wrapped.calls[0]
    torch.testing.assert_close(x[:6], philox(6).noise("prior", (3,)))
    torch.testing.assert_close(t, torch.tensor([1.0] * 6 + [1 / 3] * 6, dtype=torch.float64))
    torch.testing.assert_close(s, torch.tensor([1 / 3] * 6 + [0.0] * 6, dtype=torch.float64))
    torch.testing.assert_close(x[6:], student.flow_map(x[:6], t[:6], s[:6], condition, guidance[:6]))
    policy = student.policy(student(x, t, s, condition, guidance), x, t, s)
    reached, times = exact.calls[0][:2]
    each = 1.5 * mean_square(policy.velocity(reached, times) - exact.teacher.velocity(reached, times, None))
    torch.testing.assert_close(loss.per_sample, 2 / 3 * each[:6] + 1 / 3 * each[6:])


def test_dropped_components_change_the_path_and_nothing_else():
    seen = []
    for share in (0.0, 0.5):
        exact = teacher()
        models, _, _ = spied(exact, mlp())
        step(objective(states="prior", component_dropout=share), models, philox(64))
        seen.append(exact.calls[0])
    moved = (seen[0][0] != seen[1][0]).any(1)
    assert torch.equal(seen[0][1], seen[1][1])
    # A row keeps its path when none of 4 components goes, or all would: 1/16 each.
    assert 0.75 < float(moved.double().mean()) < 1.0
    student, exact = mlp(policy="dx"), teacher()
    models, _, _ = spied(exact, student)
    assert (
        step(objective(states="prior", component_dropout=0.5), models, philox(8))["student"].per_sample.isfinite().all()
    )


def test_segments_cover_the_unit_interval():
    torch.testing.assert_close(segment_bounds(1, 1.0), torch.tensor([1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(segment_bounds(4, 1.0), torch.linspace(1, 0, 5, dtype=torch.float64))
    lengths = segment_bounds(4, 0.5).diff().neg()
    torch.testing.assert_close(lengths, torch.tensor([2.0, 2.0, 2.0, 1.0], dtype=torch.float64) / 7)
