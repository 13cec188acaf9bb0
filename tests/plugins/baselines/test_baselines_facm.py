"""FACM: both tasks vanish at the exact map; the target, the weights and the anchor are the published ones."""

import math

import pytest
import torch
from exact_maps import ClassTeacher, RandomStudent, at_exact_map, at_guided_map, gaussian_teacher, normal_data
from freeflow_baselines.config import FACMConfig
from freeflow_baselines.facm import FACM, facm_times
from objective_helpers import GivenDraws, build, flip_derivatives, losses, spied, step

from freeflow_core.math.random import PhiloxDraws
from freeflow_core.types import Batch

ROWS = 256


def facm(**options):
    return build(FACM, FACMConfig(**options))


def worst(found):
    # Away from its kink at 0, the loss e / sqrt(e + c) is about e / sqrt(c): take the residual itself.
    return max(float(found.terms["consistency_residual"]), float(found.terms["anchor_loss"]))


def test_both_tasks_vanish_at_the_exact_map(monkeypatch):
    assert worst(at_exact_map(facm())) < 1e-12
    assert worst(at_exact_map(facm(), dtype=torch.float32)) < 1e-5
    assert worst(at_exact_map(facm(), sign=-1)) > 0.1
    assert worst(at_guided_map(facm(guidance_min=1.75, guidance_max=1.75))) < 1e-11
    flip_derivatives(monkeypatch)
    assert worst(at_exact_map(facm())) > 0.1


def test_the_loss_is_the_published_one():
    student, teacher, draws, options = RandomStudent(), gaussian_teacher(3), GivenDraws(ROWS), FACMConfig()
    t = facm_times(draws.uniform("time"), -0.8, 1.6)
    x_t = (1 - t)[:, None] * normal_data() + t[:, None] * draws.noise("noise", (3,))
    v, ones = teacher.velocity(x_t, t, None), torch.ones_like(t)
    with torch.no_grad():
        u, along = torch.func.jvp(lambda a, b: student(a, b, 0 * b, None, ones), (x_t, t), (v, ones))
        anchor = student(x_t, t, t, None, ones)
    # In the authors' time t' = 1 - t: v_bar = v + (1 - t') du/dt', target = F - (1 - t'^p) clamp(F - v_bar),
    # weight cos(pi t' / 2); with v' = -v and du/dt' = -du/dt every sign cancels.
    clock = 1 - t
    e = ((1 - clock.sqrt())[:, None] * (u - (v - t[:, None] * along)).clamp(-1, 1)).square().mean(1)
    shortcut = torch.cos(clock * math.pi / 2) * e / (e + 1e-3).sqrt()
    cosine = (anchor * v).sum(1) / anchor.norm(dim=1) / v.norm(dim=1)
    expected = shortcut + (anchor - v).square().mean(1) + 1 - cosine
    found = losses(facm(), student, teacher, draws, normal_data())["student"].per_sample
    torch.testing.assert_close(found, expected)
    assert options.relaxation_power == 0.5
    weighted = losses(facm(anchor_weight=2.0, cosine_weight=0.0), student, teacher, draws, normal_data())["student"]
    torch.testing.assert_close(weighted.per_sample, shortcut + 2 * (anchor - v).square().mean(1))


def test_cosine_is_over_channels():
    class Images(RandomStudent):
        def forward(self, x_t, t, s, condition, guidance):
            return x_t * self.second.sum()

    x = GivenDraws(4, seed=4).noise("x", (3, 2, 2))
    made, draws = facm(velocity="data"), GivenDraws(4)
    found = losses(made, Images(), None, draws, x)["student"].per_sample
    t = facm_times(draws.uniform("time"), -0.8, 1.6)[:, None, None, None]
    noise = draws.noise("noise", (3, 2, 2))
    u, v = ((1 - t) * x + t * noise) * Images().second.sum(), noise - x
    plain = losses(facm(velocity="data", cosine_weight=0.0), Images(), None, draws, x)["student"].per_sample
    cosine = ((u * v).sum(1) / u.norm(dim=1) / v.norm(dim=1)).mean((1, 2))
    torch.testing.assert_close(found - plain, 1 - cosine)


def test_times_favour_the_noise_as_published():
    # t' = 1 - 2/pi atan(exp(N(-0.8, 1.6))) in the authors' code, where t' = 1 is the data.
    t = facm_times(PhiloxDraws(0, torch.arange(20_000)).uniform("time"), -0.8, 1.6)
    assert 0 < t.min() <= t.max() < 1
    assert float(t.median()) == pytest.approx(2 / math.pi * math.atan(math.exp(-0.8)), abs=0.01)


def test_one_gradient_pass_for_both_tasks_and_one_teacher_call():
    teacher, student = ClassTeacher(), RandomStudent(num_classes=2)
    networks, wrapped, bare = spied(teacher, student)
    x, labels = teacher.data(ROWS)
    found = step(facm(), networks, GivenDraws(ROWS), Batch(x, labels))["student"]
    ((_, t, s, condition, _),) = wrapped.calls
    assert (s[:ROWS] == 0).all()
    assert torch.equal(s[ROWS:], t[ROWS:])
    assert torch.equal(condition, labels.repeat(2))
    assert teacher.calls == [ROWS]
    assert [len(call[0]) for call in bare.calls] == [ROWS]
    assert not any(bare.gradient)
    assert found.per_sample.shape == (ROWS,)
    found.per_sample.mean().backward()
    assert student.first.grad is not None
