"""Score distillation between Gaussians, where both fields, the KL and its gradient are known."""

import math

import pytest
import torch
from exact_maps import MEAN, STD, teacher_and_student
from freeflow_baselines.config import ScoreDistillationConfig
from freeflow_baselines.score_distillation import FAKE_VELOCITY, ScoreDistillation, noise_levels
from objective_helpers import Spy, TeacherSpy, philox, progress, spied, step

from freeflow_core.config import OptimizerConfig
from freeflow_core.interfaces import Model, Models
from freeflow_core.math.flow import mean_square
from freeflow_core.testing.exact import GaussianStudent, GaussianTeacher

WEIGHTINGS = ["dmd", "vsd", "velocity"]


def objective(**options):
    return ScoreDistillation(ScoreDistillationConfig(**{"critic_updates": 1, **options}))


def exact_fake(student):
    """Samples mean + std z of the student have this velocity."""
    return GaussianStudent(student.mean, student.std)


def gradients(student, sign=1.0, num=20_000, **options):
    """Of the student's mean and std; ``sign`` -1 swaps the fields."""
    teacher, fake = GaussianTeacher(MEAN, STD), exact_fake(student)
    if sign < 0:
        teacher, fake = GaussianTeacher(student.mean, student.std), GaussianStudent(MEAN, STD)
    models, _, _ = spied(teacher, student, **{FAKE_VELOCITY: fake})
    loss = step(objective(**options), models, philox(num))["student"]
    student.zero_grad()
    loss.per_sample.mean().backward()
    return student.mean.grad.clone(), student.std.grad.clone()


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_exact_samples_are_stationary_given_an_exact_fake(weighting):
    _, student = teacher_and_student()
    for gradient in gradients(student, weighting=weighting):
        assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_descent_leads_to_the_teacher_and_with_a_wrong_sign_away(weighting):
    for factor in (0.8, 1.25):
        _, student = teacher_and_student(std=factor * STD)
        _, std = gradients(student, weighting=weighting)
        assert (std * (factor - 1) > 1e-4).all()
        _, std = gradients(student, sign=-1.0, weighting=weighting)
        assert (std * (factor - 1) < -1e-4).all()
    for shift in (-0.3, 0.3):
        _, student = teacher_and_student(mean=MEAN + shift)
        mean, _ = gradients(student, weighting=weighting)
        assert (mean * shift > 1e-4).all()


def test_gradient_is_that_of_the_divergence():
    # With s = -(x + (1 - t) v) / t, the velocities' difference is t / (1 - t) times the scores'. At level t, KL between
    # N(0, f^2) and N(0, r^2), f^2 = (1 - t)^2 a^2 + t^2, has the derivative a (1 - t)^2 (1 / r^2 - 1 / f^2) in a.
    num, t, a, c = 200_000, 0.5, 1.2, 1.0
    zero = torch.zeros(1, dtype=torch.float64)
    student = GaussianStudent(zero, zero + a)
    models, _, _ = spied(GaussianTeacher(zero, zero + c), student, **{FAKE_VELOCITY: exact_fake(student)})
    level = {"time_low": t - 1e-9, "time_high": t, "weighting": "velocity"}
    step(objective(**level), models, philox(num))["student"].per_sample.mean().backward()
    f, r = ((1 - t) ** 2 * a**2 + t**2), ((1 - t) ** 2 * c**2 + t**2)
    derivative = a * (1 - t) ** 2 * (1 / r - 1 / f)
    # d x_t / d a = (1 - t) z, of which the sample's own derivative z is the loss's.
    found = float(student.std.grad) * (1 - t) * (1 - t) / t
    assert abs(found - derivative) < 4 * 2 * derivative / math.sqrt(num)


def test_published_weights():
    teacher, student = teacher_and_student(std=1.3 * STD)
    fake = exact_fake(student)
    x, draws = MEAN + 1.3 * STD * philox(32).noise("prior", (3,)), philox(32)
    for weighting in WEIGHTINGS:
        t = noise_levels(draws.uniform("noise-level"), 0.02, 0.98, "uniform")
        time, noise = t[:, None], draws.noise("noise", (3,))
        x_t = (1 - time) * x + time * noise
        v, v_fake = teacher.velocity(x_t, t, None), fake(x_t, t, t, None, None).detach()
        if weighting == "dmd":
            real, generated = x_t - time * v, x_t - time * v_fake  # predicted data points
            gradient = (generated - real) / (x - real).abs().mean(1, keepdim=True)
        elif weighting == "vsd":
            variance = time**2 / (time**2 + (1 - time) ** 2)
            gradient = variance * ((x_t + (1 - time) * v) - (x_t + (1 - time) * v_fake))  # predicted noises
        else:
            gradient = v - v_fake
        models, _, _ = spied(teacher, student, **{FAKE_VELOCITY: fake})
        loss = step(objective(weighting=weighting), models, draws)["student"]
        torch.testing.assert_close(loss.per_sample, 0.5 * mean_square(gradient))


def test_a_sample_on_the_teachers_prediction_gets_no_gradient_instead_of_nan():
    point = torch.zeros(3, dtype=torch.float64)
    student = GaussianStudent(point, torch.full_like(point, 1e-200))  # all samples are 0, as predicted
    teacher = GaussianTeacher(point, torch.full_like(point, 1e-200))
    models, _, _ = spied(teacher, student, **{FAKE_VELOCITY: GaussianStudent(point, torch.ones_like(point))})
    loss = step(objective(), models, philox(8))["student"]
    loss.per_sample.mean().backward()
    assert student.mean.grad.isfinite().all()


def test_the_student_takes_its_turn_once_in_so_many_steps():
    teacher, student = teacher_and_student()
    spy = TeacherSpy(teacher)
    models, wrapped, bare = spied(spy, student, **{FAKE_VELOCITY: exact_fake(student)})
    distillation = objective(critic_updates=5)
    trained = [set(step(distillation, models, philox(4), at=progress(step=n))) for n in range(10)]
    assert trained == ([{FAKE_VELOCITY}] * 4 + [{FAKE_VELOCITY, "student"}]) * 2
    assert (wrapped.gradient, bare.gradient) == ([True] * 2, [False] * 8)
    assert len(spy.calls) == 2  # the critic alone asks no teacher


def test_the_fake_velocity_learns_flow_matching_on_the_samples_alone():
    teacher, student = teacher_and_student(std=1.3 * STD)
    fake = exact_fake(student)
    models, _, _ = spied(teacher, student, **{FAKE_VELOCITY: fake})
    found = step(objective(), models, philox(20_000))
    found[FAKE_VELOCITY].per_sample.mean().backward()
    assert all(parameter.grad is None for parameter in student.parameters())
    assert all(p.grad is not None and p.grad.abs().max() < 0.1 for p in fake.parameters())  # it is exact already
    fake.zero_grad()
    step(objective(), models, philox(8))["student"].per_sample.mean().backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in fake.parameters())
    # Var[n - x | x_t] of N(m, a^2): a^2 / ((1 - t)^2 a^2 + t^2), the least loss there is.
    t = noise_levels(philox(20_000).uniform("noise-level"), 0.02, 0.98, "uniform")[:, None]
    a = 1.3 * STD
    floor = (a**2 / ((1 - t) ** 2 * a**2 + t**2)).mean()
    assert abs(float(found[FAKE_VELOCITY].per_sample.detach().mean() - floor)) < 0.05


def test_fake_velocity_starts_as_the_student_with_its_own_optimizer():
    _, student = teacher_and_student()
    options = OptimizerConfig(learning_rate=3e-4)
    (name, role), *rest = objective(fake_velocity_optimizer=options).roles(student, None).items()
    assert (name, rest, role.trainable, role.optimizer) == (FAKE_VELOCITY, [], True, options)
    assert role.network is not student
    assert all(torch.equal(a, b) for a, b in zip(role.network.parameters(), student.parameters(), strict=True))


def test_the_fake_velocity_is_never_guided_but_knows_the_weight():
    teacher, student = teacher_and_student()
    spy = TeacherSpy(teacher, num_classes=3)
    models, wrapped, _ = spied(spy, student, **{FAKE_VELOCITY: exact_fake(student)})
    fake = spied(spy, exact_fake(student))[1]
    models = Models({**models, FAKE_VELOCITY: Model(fake, exact_fake(student))}, spy)
    options = {"guidance_min": 1.5, "guidance_max": 4.0, "guidance_interval": (0.3, 0.7)}
    step(objective(**options), models, philox(64))
    guidance = wrapped.calls[0][4]
    torch.testing.assert_close(fake.calls[0][4], guidance)
    _, times, _, weight = spy.calls[0]
    inside = (times >= 0.3) & (times <= 0.7)
    torch.testing.assert_close(weight, torch.where(inside, guidance, torch.ones(64, dtype=torch.float64)))


def test_noise_levels():
    uniform = philox(4000).uniform("noise-level")
    t = noise_levels(uniform, 0.02, 0.98, "uniform")
    assert 0.02 <= t.min() <= t.max() <= 0.98
    assert abs(float(t.mean()) - 0.5) < 0.02
    sigma = noise_levels(torch.tensor([1 - 1e-12, 0.5, 1e-12]).double(), 0.02, 0.98, "edm")
    sigma = sigma / (1 - sigma)
    ends = [(0.002 ** (1 / 7) + share * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7 for share in (0.02, 0.5, 0.98)]
    torch.testing.assert_close(sigma, torch.tensor(ends, dtype=torch.float64))


# -- DMD's options -----------------------------------------------------------------------------------------------------


def test_the_critic_has_noise_levels_of_its_own():
    teacher, student = teacher_and_student()
    spy, fake = TeacherSpy(teacher), Spy(exact_fake(student))
    models, _, _ = spied(spy, student, **{FAKE_VELOCITY: fake})
    models[FAKE_VELOCITY] = Model(fake, fake)
    shared = step(objective(), models, philox(64))["student"].per_sample
    found = step(objective(critic_times=(0.5, 1.0)), models, philox(64))
    assert fake.gradient == [True, True, False]  # shared; the critic's own, and the student's question
    own = noise_levels(philox(64).uniform("critic-noise-level"), 0.5, 1.0, "uniform")
    torch.testing.assert_close(fake.calls[1][1], own)
    assert torch.equal(spy.calls[0][1], spy.calls[1][1])
    torch.testing.assert_close(found["student"].per_sample, shared)  # an exact critic is exact at every level


def test_edms_weight_of_the_critic_is_that_of_its_denoiser():
    teacher, student = teacher_and_student()
    fake = GaussianStudent(MEAN + 0.3, STD)
    models, _, _ = spied(teacher, student, **{FAKE_VELOCITY: fake})
    draws = philox(64)
    found = step(objective(critic_weighting="edm", data_std=0.7), models, draws)[FAKE_VELOCITY].per_sample
    x, noise = MEAN + STD * draws.noise("prior", (3,)), draws.noise("noise", (3,))
    t = noise_levels(draws.uniform("noise-level"), 0.02, 0.98, "uniform")
    x_t, sigma = (1 - t[:, None]) * x + t[:, None] * noise, t / (1 - t)
    denoised = x_t - t[:, None] * fake(x_t, t, t, None, None)
    torch.testing.assert_close(found, (sigma**-2 + 0.7**-2) * mean_square(denoised - x))


def test_the_regression_pulls_samples_to_the_teachers_end_points():
    options = {"regression_weight": 0.25, "solver_steps": 16}
    for factor in (1.0, 1.3):
        teacher, student = teacher_and_student(std=factor * STD)
        models, _, _ = spied(teacher, student, **{FAKE_VELOCITY: exact_fake(student)})
        plain, found = (step(objective(**o), models, philox(64))["student"].per_sample for o in ({}, options))
        z = philox(64).noise("prior", (3,))
        expected = mean_square((factor - 1) * STD * z)
        torch.testing.assert_close(4 * (found - plain), expected, atol=1e-2, rtol=0.1)
