"""Policies against distributions whose velocity is known, and rolling against paths that are known."""

import itertools
import math

import pytest
import torch
from freeflow_toy.gaussian_mixture import GaussianMixtureTeacher
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from freeflow_core.math.policies import DXPolicy, GMPolicy, Policy, raw_time, roll_policy, shifted_time
from freeflow_core.testing.exact import GaussianTeacher

STD, MEAN = 0.6, torch.tensor([0.5, -1.0, 0.3], dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def uniform(num, low, high, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(num, dtype=torch.float64, generator=generator)


def column(t):
    return t.unsqueeze(1)


def mixture_policy(means, std, log_weights, x, t):
    """What a perfect network emits at (x, t) for data of an isotropic mixture: its posterior of the data point."""
    alpha, time = 1 - t[:, None, None], t[:, None, None]
    total = alpha.square() * std**2 + time.square()
    gap = x.unsqueeze(1) - alpha * means
    posterior = means + alpha * std**2 / total * gap
    log_std = 0.5 * (std**2 / total).flatten().log()  # S = std^2 t^2 / total, and S = (t exp(log_std))^2
    logits = log_weights[None, :, None] - 0.5 * (gap.square() / total).sum(2, keepdim=True)
    return GMPolicy((x.unsqueeze(1) - posterior) / time, logits, log_std, x, t)


def gaussian_policy(x, t, sign=1.0):
    exact = mixture_policy(MEAN[None], STD, torch.zeros(1, dtype=torch.float64), x, t)
    posterior = exact._means
    u = sign * (x.unsqueeze(1) - posterior) / t[:, None, None]
    log_std = 0.5 * (STD**2 / ((1 - t).square() * STD**2 + t.square())).log()
    return GMPolicy(u, torch.zeros(len(x), 1, 1, dtype=torch.float64), log_std, x, t)


@pytest.mark.parametrize(("sign", "low", "high"), [(1.0, 0.0, 1e-12), (-1.0, 0.1, math.inf)])
def test_one_component_is_the_velocity_of_a_gaussian_at_every_state(sign, low, high):
    num = 2000
    x, t = normal(num, 3), uniform(num, 0.3, 1.0)
    r = t * uniform(num, 0.0, 1.0, seed=1)
    anywhere = 3 * normal(num, 3, seed=2)  # far off any trajectory
    v = GaussianTeacher(MEAN, torch.tensor(STD, dtype=torch.float64)).velocity(anywhere, r, None)
    error = (gaussian_policy(x, t, sign).velocity(anywhere, r) - v).square().mean().sqrt()
    assert low <= error <= high


@pytest.mark.parametrize("start", [1.0, 0.7])
def test_as_many_components_as_modes_are_the_velocity_of_the_mixture_at_every_state(start):
    modes, std = 2 * normal(5, 3, seed=3), 0.4
    shares = torch.tensor([0.1, 0.3, 0.2, 0.15, 0.25], dtype=torch.float64)
    teacher = GaussianMixtureTeacher(modes, stds=torch.full((5,), std, dtype=torch.float64), weights=shares)
    num = 2000
    x, t = normal(num, 3), torch.full((num,), start, dtype=torch.float64)
    r = t * uniform(num, 0.0, 1.0, seed=1)
    anywhere = 3 * normal(num, 3, seed=2)
    policy = mixture_policy(modes, std, shares.log(), x, t)
    torch.testing.assert_close(policy.velocity(anywhere, r), teacher.velocity(anywhere, r, None), rtol=0, atol=1e-10)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.floats(0.2, 1.0), st.floats(0.05, 1.0), st.floats(-2, 1), st.integers(0, 10**6))
def test_mixture_follows_the_published_formula(components, t, share, log_std, seed):
    # The formula with poles, for states (C, H, W) and weights of their own at each place.
    x_t, x = normal(2, 3, 2, 2, seed=seed), normal(2, 3, 2, 2, seed=seed + 1)
    u, logits = normal(2, components, 3, 2, 2, seed=seed + 2), normal(2, components, 1, 2, 2, seed=seed + 3)
    r = t * share
    mu, S = x_t.unsqueeze(1) - t * u, (t * math.exp(log_std)) ** 2
    a, a_t = (1 - r) / r, (1 - t) / t
    nu, zeta = (a * x / r - a_t * x_t / t).unsqueeze(1), a**2 - a_t**2
    weights = (logits + (mu * (nu - 0.5 * zeta * mu)).sum(2, keepdim=True) / (S * zeta + 1)).softmax(1)
    x_0 = (weights * (S * nu + mu) / (S * zeta + 1)).sum(1)
    times = torch.tensor([t, t], dtype=torch.float64)
    policy = GMPolicy(u, logits, torch.full((2,), log_std, dtype=torch.float64), x_t, times)
    torch.testing.assert_close(policy.velocity(x, share * times), (x - x_0) / r, rtol=1e-8, atol=1e-8)


def test_mixture_is_finite_at_the_data_and_in_float32():
    x, t = normal(50, 3), torch.ones(50, dtype=torch.float64)
    policy, at = gaussian_policy(x, t), torch.zeros(50, dtype=torch.float64)
    torch.testing.assert_close(policy.velocity(x, at), -x)  # E[n | x_0] = 0
    low = GMPolicy(
        normal(50, 2, 3).bfloat16(), torch.zeros(50, 2, 1).bfloat16(), torch.zeros(50).bfloat16(), x.float(), t
    )
    v = low.velocity(x.float(), uniform(50, 0, 1))
    assert v.dtype is torch.float32
    assert v.isfinite().all()


def test_dropped_components_take_no_part_and_never_all_go():
    x, t = normal(3, 2), torch.ones(3, dtype=torch.float64)
    u, logits = normal(3, 4, 2), normal(3, 4, 1, seed=1)
    log_std = torch.full((3,), -1.0, dtype=torch.float64)
    policy = GMPolicy(u, logits, log_std, x, t)
    dropped = torch.tensor([[True, False, True, True], [False] * 4, [True] * 4])
    v = policy.without(dropped).velocity(x, t / 2)
    only = GMPolicy(u[:, 1:2], logits[:, 1:2], log_std, x, t).velocity(x, t / 2)
    torch.testing.assert_close(v[0], only[0])
    torch.testing.assert_close(v[1:], policy.velocity(x, t / 2)[1:])
    assert policy.num_components == 4
    torch.testing.assert_close(policy.velocity(x, t / 2)[1:], v[1:])  # the original is left alone


def test_dx_runs_from_the_last_point_at_the_start_to_the_first_at_the_end():
    x, u = normal(4, 2, 3), normal(4, 5, 2, 3, seed=1)
    t, s = uniform(4, 0.6, 1.0), uniform(4, 0.1, 0.4)
    policy = DXPolicy(u, x, t, s, shift=2.0)
    points = x.unsqueeze(1) - t[:, None, None, None] * u
    state = normal(4, 2, 3, seed=2)
    for place, time in ((-1, t), (0, s)):
        expected = (state - points[:, place]) / time[:, None, None]
        torch.testing.assert_close(policy.velocity(state, time), expected)
    third = shifted_time(raw_time(s, 2.0) + 0.375 * (raw_time(t, 2.0) - raw_time(s, 2.0)), 2.0)  # between 1 and 2
    expected = (state - points[:, 1:3].mean(1)) / third[:, None, None]
    torch.testing.assert_close(policy.velocity(state, third), expected)
    assert policy.without(torch.ones(4, 1, dtype=torch.bool)) is policy
    assert policy.num_components == 1


def test_one_dx_point_is_a_straight_line():
    x, u = normal(6, 3), normal(6, 1, 3, seed=1)
    t, s = uniform(6, 0.5, 1.0), uniform(6, 0.0, 0.4)
    policy = DXPolicy(u, x, t, s)
    # Euler is exact on straight lines, whatever the number of substeps.
    for substeps in (1, 7, 128):
        reached = roll_policy(policy, x, t, s, num_substeps=substeps)
        torch.testing.assert_close(reached, x - column(t - s) * u[:, 0], rtol=1e-9, atol=1e-9)


def test_rolling_is_eulers_method_of_first_order():
    x = normal(300, 3)
    one = torch.ones(300, dtype=torch.float64)
    teacher = GaussianTeacher(MEAN, torch.tensor(STD, dtype=torch.float64)).double()
    exact = teacher.exact_flow_map(x, one, 0 * one)
    policy = gaussian_policy(x, one)
    errors = [
        (roll_policy(policy, x, one, 0 * one, num_substeps=n) - exact).square().mean().sqrt() for n in (32, 64, 128)
    ]
    for coarse, fine in itertools.pairwise(errors):
        assert 1.8 < coarse / fine < 2.2
    state = x
    for i in range(32):
        state = state - policy.velocity(state, one * (1 - i / 32)) / 32
    torch.testing.assert_close(roll_policy(policy, x, one, 0 * one, num_substeps=32), state)


def test_a_row_is_rolled_alike_whatever_stands_beside_it():
    x, t, s = normal(5, 3), uniform(5, 0.5, 1.0), uniform(5, 0.0, 0.5, seed=1)
    together = roll_policy(gaussian_policy(x, t), x, t, s, num_substeps=20, shift=3.0)
    for row in range(5):
        rows = slice(row, row + 1)
        alone = roll_policy(gaussian_policy(x[rows], t[rows]), x[rows], t[rows], s[rows], num_substeps=20, shift=3.0)
        torch.testing.assert_close(together[rows], alone, rtol=0, atol=1e-14)


class Recorder(Policy):
    def __init__(self):
        self.times: list[Tensor] = []

    def velocity(self, x, t):
        self.times.append(t)
        return torch.ones_like(x)


def test_substeps_are_equal_in_the_raw_time_and_counted_per_unit_of_it():
    t, s = torch.tensor([1.0, 0.4]).double(), torch.tensor([0.0, 0.4]).double()
    recorder = Recorder()
    x = torch.zeros(2, 3, dtype=torch.float64)
    reached = roll_policy(recorder, x, t, s, num_substeps=8, shift=3.2)
    raw = torch.stack([raw_time(time[0], 3.2) for time in recorder.times])
    torch.testing.assert_close(raw, torch.linspace(1, 0, 9, dtype=torch.float64)[:-1])
    torch.testing.assert_close(reached, torch.stack([x[0] - 1, x[1]]))  # the second row has no way to go
    roll_policy(recorder := Recorder(), x, t, t - 1e-3, num_substeps=8)
    assert len(recorder.times) == 1  # at least one


@given(st.floats(0.1, 10), st.floats(0, 1))
def test_raw_time_and_shifted_time_undo_each_other(shift, t):
    time = torch.tensor([t], dtype=torch.float64)
    torch.testing.assert_close(shifted_time(raw_time(time, shift), shift), time)
    assert raw_time(time * 0 + 1, shift).item() == pytest.approx(1)
