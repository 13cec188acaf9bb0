"""Inductive moment matching on Gaussian data, and the discrepancy of groups it rests on."""

import math

import pytest
import torch
from exact_maps import MEAN, STD, gaussian_data, teacher_and_student
from freeflow_baselines.config import IMMConfig
from freeflow_baselines.imm import IMM, group_mmd, level_weight, lower_level
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_helpers import TeacherSpy, philox, spied, step

from freeflow_core.errors import ConfigError
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.testing.exact import GaussianStudent
from freeflow_core.types import Batch


def objective(**options):
    return IMM(IMMConfig(**options))


def data(num, start=0, labels=None):
    return Batch(gaussian_data(num, start), labels)


def scale_gradient(factor, **options):
    """Derivative of the unweighted loss in the student's scale at ``factor`` times the exact one, and its error."""
    parts = []
    for number in range(60):
        _, student = teacher_and_student(std=factor * STD)
        models, _, _ = spied(None, student)
        start = 512 * number
        loss = step(objective(**options), models, philox(512, start), data(512, start))["student"]
        loss.per_sample.mean().backward()
        parts.append((student.std.grad * STD).sum())
    found = torch.stack(parts)
    return float(found.mean()), float(found.std() / math.sqrt(len(parts)))


def test_the_u_statistic_is_stationary_in_the_mean_at_the_exact_map_and_only_there():
    # A wide gap, so that there is something to see.
    options = {"statistic": "u", "group_size": 8, "gap_exponent": 6.0}
    mean, error = scale_gradient(1.0, **options)
    assert abs(mean) < 4 * error
    for factor, sign in ((0.8, -1), (1.25, 1)):
        mean, error = scale_gradient(factor, **options)
        assert sign * mean > 8 * error
    # The published statistic is not: it narrows the samples by what the gap leaves.
    mean, error = scale_gradient(1.0, **{**options, "statistic": "v"})
    assert mean > 8 * error


def brute_force(x, y, width, size, unbiased):
    def k(a, b, w):
        return torch.exp(-max((a - b).norm(), torch.tensor(1e-4)) / w)

    rows = []
    for i in range(len(x)):
        group = range(i // size * size, (i // size + 1) * size)
        others = [j for j in group if j != i or not unbiased]
        rows.append(
            sum(k(x[i], x[j], width[i]) + k(y[i], y[j], width[i]) - 2 * k(x[i], y[j], width[i]) for j in others)
            / len(others)
        )
    return torch.stack(rows)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.booleans(), st.integers(0, 10**6))
def test_discrepancy_of_groups_by_brute_force(size, groups, unbiased, seed):
    if unbiased and size == 1:
        return
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(size * groups, 2, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    width = (0.1 + torch.rand(groups, generator=generator, dtype=torch.float64)).repeat_interleave(size)
    found = group_mmd(x, y, width, size=size, unbiased=unbiased)
    torch.testing.assert_close(found, brute_force(x, y, width, size, unbiased))


def test_same_states_differ_in_nothing_and_have_no_gradient():
    x = gaussian_data(8).requires_grad_()
    found = group_mmd(x, x.detach(), torch.ones(8, dtype=torch.float64), size=4, unbiased=False)
    found.sum().backward()
    assert found.abs().max() < 1e-12
    assert x.grad.abs().max() < 1e-12


def test_rows_of_other_labels_are_not_compared_when_asked():
    _, student = teacher_and_student(std=1.3 * STD)
    models, _, _ = spied(None, student)
    student.num_classes = None
    same = torch.zeros(8, dtype=torch.long)
    mixed = torch.tensor([0, 1, 2, 3] * 2)
    options = {"gap_exponent": 6.0, "label_kernel": "same"}
    together = step(objective(**options), models, philox(8), data(8, labels=same))["student"].per_sample
    anyway = step(objective(gap_exponent=6.0), models, philox(8), data(8, labels=mixed))["student"].per_sample
    torch.testing.assert_close(together, anyway)
    apart = step(objective(**options), models, philox(8), data(8, labels=mixed))["student"].per_sample
    # Each row is then compared with itself alone: a quarter of its own pair's discrepancy.
    assert not torch.allclose(apart, anyway)
    with pytest.raises(ConfigError, match="label_kernel=any"):
        step(objective(**options), models, philox(8), Batch(gaussian_data(8), {"text": torch.zeros(8, 2)}))


def test_groups_share_their_times_and_the_pair_of_levels_its_data_and_noise():
    _, student = teacher_and_student()
    models, wrapped, bare = spied(None, student)
    config = IMMConfig(gap_exponent=8.0)
    step(objective(gap_exponent=8.0), models, philox(64), data(64))
    (x_t, t, s, _, guidance), (x_r, r, s_r, _, _) = wrapped.calls[0], bare.calls[0]
    assert (wrapped.gradient, bare.gradient) == ([True], [False])
    for times in (t, s, r):
        assert torch.equal(times.reshape(-1, 4), times.reshape(-1, 4)[:, :1].expand(-1, 4))
    assert torch.equal(s, s_r)
    assert len(t.unique()) == 16
    torch.testing.assert_close(r, lower_level(t, s, config))
    x, noise = gaussian_data(64), philox(64).noise("noise", (3,))
    for state, time in ((x_t, t[:, None]), (x_r, r[:, None])):
        torch.testing.assert_close(state, (1 - time) * x + time * noise)
    assert torch.equal(guidance, torch.ones(64, dtype=torch.float64))


def test_times_are_uniform_below_their_bounds():
    _, student = teacher_and_student()
    models, wrapped, _ = spied(None, student)
    step(objective(group_size=1), models, philox(4000), data(4000))
    t, s = wrapped.calls[0][1:3]
    assert t.max() < 0.994
    assert abs(float(t.mean()) - 0.497) < 0.02
    assert abs(float((s / t).mean()) - 0.5) < 0.02


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-4, 0.99), st.floats(0, 1), st.floats(1, 20))
def test_the_lower_level_keeps_its_distance_in_noise_over_data(t, share, exponent):
    time = torch.tensor([t], dtype=torch.float64)
    s = share * time
    r = lower_level(time, s, IMMConfig(gap_exponent=exponent))
    assert (s <= r).all()
    assert (r <= time).all()
    inside = (r > s) & (r < time - 1e-4)
    gap = time / (1 - time) - r / (1 - r)
    expected = torch.full_like(gap, 0.994 / 0.006 * 2**-exponent)
    assert not inside.any() or torch.allclose(gap, expected, rtol=1e-6)


def test_weight_of_a_level():
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64, requires_grad=True)
    log_snr = 2 * torch.log((1 - t) / t)
    (slope,) = torch.autograd.grad(log_snr.sum(), t)
    expected = 0.5 / (1 + torch.exp(log_snr - 4)) * -slope * (1 - t) ** 2 / ((1 - t) ** 2 + t**2)
    torch.testing.assert_close(level_weight(t.detach(), offset=4.0, power=2.0), expected.detach())


def test_with_a_teacher_the_lower_state_is_one_step_of_its_guided_field():
    teacher, student = teacher_and_student()
    spy = TeacherSpy(teacher, num_classes=3)
    models, wrapped, bare = spied(spy, student)
    options = {"guidance_min": 2.0, "guidance_max": 3.0, "guidance_interval": (0.3, 0.8), "gap_exponent": 6.0}
    imm = objective(velocity="teacher", **options)
    step(imm, models, philox(64), data(64, labels=torch.arange(64) % 3))
    (x_t, t, _, labels, guidance), (x_r, r, *_) = wrapped.calls[0], bare.calls[0]
    _, times, _, weight = spy.calls[0]
    torch.testing.assert_close(times, t)
    torch.testing.assert_close(x_r, x_t - (t - r)[:, None] * teacher.velocity(x_t, t, None))
    inside = (t >= 0.3) & (t <= 0.8)
    torch.testing.assert_close(weight, torch.where(inside, guidance, torch.ones(64, dtype=torch.float64)))
    assert torch.equal(guidance.reshape(-1, 4), guidance.reshape(-1, 4)[:, :1].expand(-1, 4))
    assert torch.equal(labels, torch.arange(64) % 3)  # none is dropped: the teacher knows the null class
    assert (imm.needs_teacher, objective().needs_teacher) == (True, False)


def test_groups_are_never_cut():
    _, student = teacher_and_student()
    models, _, _ = spied(None, student)
    with pytest.raises(ConfigError, match="multiple of 4 rows"):
        step(objective(), models, philox(6), data(6))
    shifted = PhiloxDraws(3, torch.arange(2, 10), position=torch.arange(2, 10), batch_size=12, dtype=torch.float64)
    with pytest.raises(ConfigError, match="multiple of 4 rows"):
        step(objective(), models, shifted, data(8))
    with pytest.raises(ConfigError, match="source yields none"):
        step(objective(), models, philox(8))


def test_no_gradient_runs_through_the_jump_from_below():
    student = GaussianStudent(MEAN, 1.2 * STD)
    models, wrapped, bare = spied(None, student)
    step(objective(gap_exponent=6.0), models, philox(8), data(8))["student"].per_sample.mean().backward()
    found = student.std.grad
    (x_t, t, s, _, _), (x_r, r, *_) = wrapped.calls[0], bare.calls[0]
    fixed = GaussianStudent(MEAN, 1.2 * STD)
    again = GaussianStudent(MEAN, 1.2 * STD)
    a, b = again.flow_map(x_t, t, s, None, None), fixed.flow_map(x_r, r, s, None, None).detach()
    mmd = group_mmd(a, b, 3 * (t - s), size=4, unbiased=False)
    (level_weight(t, offset=4.0, power=1.0) * mmd).mean().backward()
    torch.testing.assert_close(found, again.std.grad)
