"""Regression on pairs of a Gaussian teacher, whose trajectories are known."""

import itertools

import freeflow_baselines.pairs as pairs_module
import pytest
import torch
from exact_maps import MEAN, STD, PlainStudent, policy_student, teacher_and_student
from freeflow_baselines.config import PairsConfig
from freeflow_baselines.pairs import PairRegression, end_point
from objective_helpers import TeacherSpy, philox, spied, step
from pydantic import ValidationError
from torch import nn

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import BuildContext, Codec, Distance
from freeflow_core.math.flow import expand_times, mean_square
from freeflow_core.testing.exact import GaussianStudent, GaussianTeacher


def objective(**options):
    return PairRegression(PairsConfig(**options))


class StraightStudent(PlainStudent):
    """The rectified flow of x = mean + std z: straight lines, with the velocity z - x of the z that leads to x_t."""

    def __init__(self):
        super().__init__()
        self.mean, self.std = nn.Parameter(MEAN.clone()), nn.Parameter(STD.clone())
        self.sample_shape = tuple(MEAN.shape)

    def forward(self, x_t, t, s, condition, guidance):
        time = expand_times(t, x_t)
        z = (x_t - (1 - time) * self.mean) / ((1 - time) * self.std + time)
        return z - (self.mean + self.std * z)


@pytest.mark.parametrize(
    ("mode", "student"), [("endpoint", GaussianStudent(MEAN, STD)), ("rectified-flow", StraightStudent())]
)
def test_the_exact_map_is_stationary_on_exact_pairs_and_a_wrong_sign_is_not(mode, student, monkeypatch):
    models, _, _ = spied(GaussianTeacher(MEAN, STD), student)
    for sign in (1.0, -1.0):
        monkeypatch.setattr(pairs_module, "end_point", lambda _, z, *more, sign=sign: MEAN + sign * STD * z)
        loss = step(objective(mode=mode), models, philox(1000))["student"]
        student.zero_grad()
        loss.per_sample.mean().backward()
        gradient = max(float(p.grad.abs().max()) for p in student.parameters() if p.grad is not None)
        if sign == 1:
            assert loss.per_sample.max() < 1e-24
            assert gradient < 1e-12
        else:
            assert loss.per_sample.mean() > 0.1
            assert gradient > 0.01


def test_lines_between_the_pairs_are_asked_everywhere_for_jumps_of_every_length(monkeypatch):
    monkeypatch.setattr(pairs_module, "end_point", lambda _, z, *more: MEAN + STD * z)
    models, wrapped, _ = spied(GaussianTeacher(MEAN, STD), StraightStudent())
    step(objective(mode="rectified-flow"), models, philox(4000))
    x_t, t, s, _, _ = wrapped.calls[0]
    z = philox(4000).noise("prior", (3,))
    torch.testing.assert_close(x_t, (1 - t[:, None]) * (MEAN + STD * z) + t[:, None] * z)
    assert abs(float(t.mean()) - 0.5) < 0.02
    assert abs(float((s / t).mean()) - 0.5) < 0.02
    assert (s < t).all()


@pytest.mark.parametrize(("solver", "ratio", "finest"), [("euler", 2.0, 0.03), ("heun", 4.0, 1e-3)])
def test_the_teachers_path_is_followed_with_the_solvers_order(solver, ratio, finest):
    teacher = GaussianTeacher(MEAN, STD)
    z, one = philox(500).noise("prior", (3,)), torch.ones(500, dtype=torch.float64)
    exact = teacher.exact_flow_map(z, one, 0 * one)
    errors = [
        (end_point(teacher, z, None, one, PairsConfig(solver=solver, solver_steps=n)) - exact).norm() / exact.norm()
        for n in (16, 32, 64)
    ]
    for coarse, fine in itertools.pairwise(errors):
        assert 0.8 * ratio < coarse / fine < 1.25 * ratio
    assert errors[-1] < finest


def test_online_pairs_are_noise_and_where_the_teacher_takes_it():
    teacher, student = teacher_and_student(std=1.2 * STD)
    spy = TeacherSpy(teacher)
    models, wrapped, bare = spied(spy, student)
    loss = step(objective(solver_steps=8), models, philox(16))["student"]
    z, t, s, condition, _ = wrapped.calls[0]
    assert torch.equal(z, philox(16).noise("prior", (3,)))
    assert torch.equal(t, torch.ones_like(t))
    assert torch.equal(s, torch.zeros_like(s))
    assert condition is None
    one = torch.ones(16, dtype=torch.float64)
    x = end_point(teacher, z, None, one, PairsConfig(solver_steps=8))
    torch.testing.assert_close(loss.per_sample, mean_square(student.flow_map(z, t, s, None, None) - x))
    assert len(spy.calls) == 16  # Heun asks twice a step
    assert (wrapped.gradient, bare.gradient) == ([True], [])


def test_guidance_is_decided_at_each_steps_start():
    spy = TeacherSpy(GaussianTeacher(MEAN, STD), num_classes=2)
    models, wrapped, _ = spied(spy, GaussianStudent(MEAN, STD))
    options = {"guidance_min": 2.0, "guidance_max": 4.0, "guidance_interval": (0.3, 0.7), "solver_steps": 4}
    step(objective(**options), models, philox(5))
    guidance = wrapped.calls[0][4]
    for number, (_, times, _, weight) in enumerate(spy.calls):
        start = 1 - number // 2 / 4
        assert times[0] == pytest.approx(start - 0.25 * (number % 2))
        torch.testing.assert_close(weight, guidance if 0.3 <= start <= 0.7 else torch.ones_like(guidance))


def test_a_policy_student_is_trained_through_its_rolled_policy():
    student = policy_student(width=8, depth=1, num_components=2, num_substeps=4)
    models, _, _ = spied(GaussianTeacher(MEAN, STD), student)
    step(objective(solver_steps=2), models, philox(4))["student"].per_sample.mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())


class SquareDistance(Distance):
    """Of images: their mean square."""

    def between(self, images, others):
        assert not others.requires_grad
        return mean_square(images - others)


class HalvingCodec(Codec):
    """Images are half the states."""

    def encode(self, images):
        raise NotImplementedError

    def decode(self, x):
        raise NotImplementedError

    def decode_with_gradient(self, x):
        return x / 2


def test_a_distance_looks_at_the_codecs_images():
    asked = []

    def component(kind, name, options):
        asked.append((kind, name, options))
        return SquareDistance()

    context = BuildContext(torch.device("cpu"), 0, component, codec=HalvingCodec())
    models, _, _ = spied(GaussianTeacher(MEAN, STD), GaussianStudent(MEAN + 0.5, STD))
    plain = step(objective(solver_steps=4), models, philox(8))["student"].per_sample
    choice = {"name": "perceptual", "features": "mnist"}
    for weight in (0.0, 2.0):
        config = PairsConfig(solver_steps=4, distance=choice, square_weight=weight)
        found = step(PairRegression.from_config(config, context), models, philox(8))["student"].per_sample
        torch.testing.assert_close(found, (0.25 + weight) * plain)
    assert asked[0] == ("distance", "perceptual", {"features": "mnist"})
    with pytest.raises(ConfigError, match="images"):
        PairRegression.from_config(config, BuildContext(torch.device("cpu"), 0, component))
    with pytest.raises(ValidationError):
        PairsConfig(mode="rectified-flow", distance=choice)
