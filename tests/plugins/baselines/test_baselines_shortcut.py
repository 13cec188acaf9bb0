"""Shortcut models: halves of the exact map make the whole; sizes, shares and labels by counts; guidance."""

import freeflow_baselines.shortcut as shortcut_module
import objective_helpers as helpers
import torch
from exact_maps import (
    ClassTeacher,
    ExactGaussianStudent,
    PlainStudent,
    RandomStudent,
    at_exact_map,
    gaussian_teacher,
    largest,
    normal_data,
)
from freeflow_baselines.config import ShortcutConfig
from freeflow_baselines.shared import TARGET
from freeflow_baselines.shortcut import Shortcut, shortcut_times
from objective_helpers import GivenDraws, Spy, build, losses

from freeflow_core.math.random import PhiloxDraws
from freeflow_core.types import Batch

ROWS = 256
KEEP = {"label-dropout": torch.ones(ROWS, dtype=torch.float64)}


def shortcut(**options):
    return build(Shortcut, ShortcutConfig(**{"clip": None, **options}))


def spied(objective, teacher, draws):
    target = Spy(RandomStudent(seed=1, num_classes=2))
    networks, wrapped, _ = helpers.spied(teacher, RandomStudent(num_classes=2), **{TARGET: target})
    batch = Batch(*(teacher or ClassTeacher()).data(len(draws.index)))
    return wrapped, target, helpers.step(objective, networks, draws, batch)["student"]


class EulerStudent(PlainStudent):
    """The map of Euler steps of the teacher, each 1 / base_steps long: what shortcut models can learn exactly."""

    def __init__(self, teacher, base_steps):
        super().__init__()
        self.teacher, self.base_steps, self.sample_shape = teacher, base_steps, teacher.sample_shape
        self.scale = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x_t, t, s, condition, guidance):
        x = x_t
        for number in range(self.base_steps):
            now = (t - number / self.base_steps).clamp(min=0)
            moved = x - self.teacher.guided_velocity(x, now, condition, guidance) / self.base_steps
            x = torch.where((now > s + 0.5 / self.base_steps)[:, None], moved, x)
        return self.scale.to(x_t) * (x_t - x) / (t - s)[:, None]


def residual(sign=1.0, dtype=torch.float64, exact=None, base_steps=16):
    network = EulerStudent(gaussian_teacher(), base_steps) if exact is None else exact
    return largest(at_exact_map(shortcut(bootstrap_share=0.5, base_steps=base_steps), sign, dtype, network))


def test_the_map_of_so_many_euler_steps_is_the_fixed_point():
    assert residual() < 1e-12
    assert residual(dtype=torch.float32) < 1e-4
    assert residual(sign=-1) > 0.1


def test_the_exact_map_is_kept_up_to_the_smallest_size():
    coarse, fine = (residual(exact=ExactGaussianStudent(gaussian_teacher()), base_steps=n) for n in (64, 256))
    assert 3 < coarse / fine < 5


def test_a_wrong_sign_of_the_half_steps_shows(monkeypatch):
    monkeypatch.setattr(shortcut_module, "average_velocity_jump", lambda x, u, t, s: x + (t - s)[:, None] * u)
    assert residual() > 0.1


def test_guided_teacher_needs_no_guidance_of_the_bootstrap():
    teacher = ClassTeacher()
    x, labels = teacher.data(ROWS)
    made = shortcut(guidance_min=2.5, guidance_max=2.5, bootstrap_share=0.5, base_steps=8)
    found = losses(made, EulerStudent(ClassTeacher(), 8), teacher, GivenDraws(ROWS), x, labels)["student"]
    assert found.per_sample.detach().max().sqrt() < 1e-11


def test_sizes_are_powers_of_two_alike_often_and_times_lie_on_their_grids():
    draws = PhiloxDraws(0, torch.arange(16_000))
    bootstrap = draws.split(0.5)[1]
    t, d = shortcut_times(draws, bootstrap, 128)
    sizes = torch.bincount((-torch.log2(d[bootstrap])).long(), minlength=7)
    assert len(sizes) == 7
    assert 1000 < sizes.min() <= sizes.max() < 1290
    assert (d == 1 / 128).sum() == 8000
    assert torch.equal((1 - t[bootstrap]) / d[bootstrap], ((1 - t[bootstrap]) / d[bootstrap]).round())
    assert (t - d >= 0).all()
    plain = t[d == 1 / 128] * 128
    assert torch.equal(plain, plain.round())
    assert set(plain.long().tolist()) == set(range(1, 129))
    smallest = t[d == 2 / 128] * 64
    assert set(smallest.long().tolist()) <= set(range(1, 65))


def test_shares_and_passes():
    teacher = ClassTeacher()
    wrapped, target, loss = spied(shortcut(), teacher, GivenDraws(ROWS))
    ((_, t, s, _, _),) = wrapped.calls
    assert torch.bincount(-torch.log2(t - s).long(), minlength=8)[7] == ROWS * 7 // 8
    assert ((t - s)[: ROWS * 7 // 8] == 1 / 128).all()  # the smallest size, which the bootstrap of 1/64 asks for
    assert teacher.calls == [ROWS * 7 // 8]  # only the flow-matching rows ask the teacher
    assert [len(call[0]) for call in target.calls] == [ROWS // 8] * 2
    assert wrapped.gradient == [True]
    assert not any(target.gradient)
    loss.per_sample.mean().backward()
    assert all(p.grad is None for p in target.parameters())
    first, second = target.calls
    half = (first[1] - first[2]).clone()
    assert torch.equal(second[1], first[2])
    torch.testing.assert_close(second[1] - second[2], half)
    torch.testing.assert_close(second[2], s[ROWS * 7 // 8 :])


def test_clipping_of_target_and_mid_state():
    student, teacher, x = RandomStudent(), gaussian_teacher(3), 3 * normal_data()
    draws = GivenDraws(ROWS)
    rows = draws.split(0.5)[1]
    t, d = shortcut_times(draws, rows, 128)
    x_t = ((1 - t)[:, None] * x + t[:, None] * draws.noise("noise", (3,)))[rows]
    t, d = t[rows], d[rows]
    ones, c = torch.ones_like(t), 0.3
    with torch.no_grad():
        u1 = student(x_t, t, t - d / 2, None, ones)
        x_mid = (x_t - (d / 2)[:, None] * u1).clamp(-c, c)
        u2 = student(x_mid, t - d / 2, t - d, None, ones)
        expected = (student(x_t, t, t - d, None, ones) - ((u1 + u2) / 2).clamp(-c, c)).square().mean(1)
    made = shortcut(clip=c, bootstrap_share=0.5, target_halflife_images=None)
    found = losses(made, student, teacher, draws, x)["student"].per_sample[ROWS // 2 :]
    torch.testing.assert_close(found, expected)


def test_from_data_plain_rows_are_unguided_and_drop_labels():
    wrapped, _, _ = spied(
        shortcut(velocity="data", guidance_min=3.0, guidance_max=3.0, bootstrap_share=0.5), None, GivenDraws(4000)
    )
    ((_, _, _, condition, guidance),) = wrapped.calls
    assert (guidance[:2000] == 1).all()
    assert (guidance[2000:] == 3).all()
    dropped = condition == 2
    assert not dropped[2000:].any()
    assert abs(float(dropped[:2000].double().mean()) - 0.1) < 0.03
    wrapped, _, _ = spied(shortcut(), ClassTeacher(), GivenDraws(4000))
    assert not (wrapped.calls[0][3] == 2).any()


def test_from_data_the_smallest_size_bootstraps_from_guidance_and_larger_ones_inherit_it():
    made = shortcut(velocity="data", guidance_min=2.5, guidance_max=2.5, base_steps=8, bootstrap_share=0.5)
    draws = GivenDraws(ROWS, KEEP)
    rows = draws.split(0.5)[1]
    t, d = shortcut_times(draws, rows, 8)
    smallest = d[rows] == 2 / 8
    wrapped, target, found = spied(made, None, draws)
    x, labels = ClassTeacher().data(ROWS)
    x_t = ((1 - t)[:, None] * x + t[:, None] * draws.noise("noise", (3,)))[rows]
    t, d, labels = t[rows], d[rows], labels[rows]
    for call in target.calls:
        assert len(call[0]) == len(rows) + int(smallest.sum())
        assert torch.equal(call[4][: len(rows)] == 1, smallest)
        assert (call[3][len(rows) :] == 2).all()
        assert (call[4][len(rows) :] == 1).all()

    one, g = torch.ones_like(t), torch.full_like(t, 2.5)
    network = target.network

    def step(x, t, s):
        plain, null = network(x, t, s, labels, one), network(x, t, s, torch.full_like(labels, 2), one)
        return torch.where(smallest[:, None], null + 2.5 * (plain - null), network(x, t, s, labels, g))

    with torch.no_grad():
        u1 = step(x_t, t, t - d / 2)
        u2 = step(x_t - (d / 2)[:, None] * u1, t - d / 2, t - d)
        expected = (wrapped.network(x_t, t, t - d, labels, g) - (u1 + u2) / 2).square().mean(1)
    torch.testing.assert_close(found.per_sample[ROWS // 2 :], expected)
