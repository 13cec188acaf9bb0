"""MeanFlow at the exact map: the residual is rounding, row by row from a teacher, in the mean over paths from data."""

from typing import Any

import pytest
import torch
from exact_maps import (
    ClassTeacher,
    ExactGaussianStudent,
    ExactGuidedStudent,
    RandomStudent,
    at_exact_map,
    at_guided_map,
    gaussian_teacher,
    largest,
)
from freeflow_meanflow.config import ImprovedMeanFlowConfig, MeanFlowConfig
from freeflow_meanflow.improved import ImprovedMeanFlow
from freeflow_meanflow.meanflow import MeanFlow
from objective_helpers import GivenDraws, antithetic, build, losses

from freeflow_core.math.flow import linear_interpolate
from freeflow_core.objective_kit import passes

ROWS = 256
PLAIN: dict[str, Any] = {"weight_power": 0.0, "instant_share": 0.25}


def mean_flow(**options):
    return build(MeanFlow, MeanFlowConfig(**{**PLAIN, **options}))


def improved(**options):
    return build(ImprovedMeanFlow, ImprovedMeanFlowConfig(**{**PLAIN, **options}))


def data_of(teacher, rows=ROWS):
    return teacher.sample_data(GivenDraws(rows, seed=8))


def residual(sign=1.0, dtype=torch.float64, **options):
    return largest(at_exact_map(mean_flow(**options), sign, dtype))


def test_residual_of_the_exact_map_is_rounding_and_a_wrong_sign_of_the_teacher_shows():
    assert residual() < 1e-12
    assert residual(dtype=torch.float32) < 1e-5
    assert residual(sign=-1) > 0.1


@pytest.mark.parametrize(
    ("step", "limit", "method"), [(1e-4, 3e-6, "central"), (5e-3, 1e-2, "central"), (1e-4, 1e-2, "one-sided")]
)
def test_differences_come_close(step, limit, method):
    assert residual(derivative=method, derivative_step=step) < limit


@pytest.mark.parametrize("end", [None, -2.0])
def test_a_wrong_sign_of_the_derivative_shows(monkeypatch, end):
    assert residual(end_location=end) < 1e-12
    right = passes.line_derivative
    monkeypatch.setattr(passes, "line_derivative", lambda *a, **k: -right(*a, **k))
    assert residual(end_location=end) > 0.1


@pytest.mark.parametrize("options", [{"guidance_min": 2.5, "guidance_max": 2.5}, {"guidance_max": 4.0}])
def test_guided_teacher(options):
    assert largest(at_guided_map(mean_flow(**options))) < 1e-11
    assert largest(at_guided_map(mean_flow())) < 1e-11
    below = mean_flow(**options, guidance_interval=(0.0, 0.3))
    assert largest(at_guided_map(below)) > 0.1  # the student guides everywhere, the teacher now below 0.3


def pairs_of_paths(velocity, x, noise, t):
    mirrored = antithetic(velocity(linear_interpolate(x, noise, t), t), x, noise, t)
    return torch.cat([x, mirrored[0]]), torch.cat([noise, mirrored[1]])


def times_of(objective, draws):
    """t of the first half of the rows, and the time streams repeated for the second."""
    from freeflow_meanflow.step import time_pairs

    half = len(draws.index) // 2
    streams = {name: draws.uniform(name)[:half].repeat(2) for name in ("time", "end-time", "guidance")}
    t = time_pairs(GivenDraws(2 * half, streams), objective._options)[0]
    assert torch.equal(t[:half], t[half:])
    return t[:half], streams


@pytest.mark.parametrize(
    "objective",
    [mean_flow(velocity="data"), mean_flow(velocity="data", derivative="central", derivative_step=1e-4), improved()],
    ids=["meanflow", "meanflow-central", "improved"],
)
def test_from_data_the_gradient_vanishes_in_mirrored_pairs_alone(objective):
    teacher = gaussian_teacher()
    t, streams = times_of(objective, GivenDraws(ROWS))
    draws = GivenDraws(ROWS // 2, seed=9)
    x, noise = pairs_of_paths(
        lambda x_t, t: teacher.velocity(x_t, t, None), data_of(teacher, ROWS // 2), draws.noise("n", (6,)), t
    )
    student = ExactGaussianStudent(teacher)
    given = GivenDraws(ROWS, {**streams, "noise": noise})
    per_sample = losses(objective, student, None, given, x)["student"].per_sample
    each = torch.stack([torch.autograd.grad(row, student.scale, retain_graph=True)[0] for row in per_sample])
    limit = 1e-10 if objective._options.derivative == "forward-mode" else 1e-4
    assert (each[: ROWS // 2] + each[ROWS // 2 :]).abs().max() < limit
    assert each.abs().median() > 0.1
    assert per_sample.median() > 0.1


@pytest.mark.parametrize(
    "objective",
    [
        mean_flow(velocity="data", guidance_min=2.5, guidance_max=2.5),
        mean_flow(velocity="data", guidance_min=2.5, guidance_max=2.5, guidance_mixing=0.6),
        mean_flow(velocity="data", guidance_min=1.0, guidance_max=4.0, guidance_mixing=0.5),
        improved(guidance_min=1.0, guidance_max=8.0),
        improved(guidance_min=0.5, guidance_max=3.0, guidance_distribution="uniform"),
    ],
    ids=["omega", "kappa", "range", "improved", "improved-uniform"],
)
def test_guidance_from_data_has_the_guided_velocity_as_its_fixed_point(objective):
    # Only in s = t rows: the target is linear in n - x there, so its mean over mirrored pairs is the fixed point's.
    teacher = ClassTeacher()
    t, streams = times_of(objective, GivenDraws(ROWS))
    x, labels = teacher.data(ROWS // 2)
    noise = GivenDraws(ROWS // 2, seed=9).noise("n", (3,))
    x, noise = pairs_of_paths(lambda x_t, t: teacher.velocity(x_t, t, labels), x, noise, t)
    given = {**streams, "noise": noise, "label-dropout": torch.ones(ROWS, dtype=torch.float64)}
    rows = GivenDraws(ROWS, given)
    instant = rows.split(objective._options.instant_share)[1]
    instant = instant[instant < ROWS // 2]

    def pair_gradients(scale):
        student = ExactGuidedStudent(teacher, scale)
        per_sample = losses(objective, student, None, rows, x, labels.repeat(2))["student"].per_sample
        each = torch.stack([torch.autograd.grad(row, student.scale, retain_graph=True)[0] for row in per_sample])
        return (each[: ROWS // 2] + each[ROWS // 2 :])[instant]

    assert pair_gradients(1.0).abs().max() < 1e-10
    assert pair_gradients(1.1).abs().median() > 1e-2


def test_rows_whose_label_was_dropped_learn_the_unguided_null_class():
    teacher = ClassTeacher()
    x, labels = teacher.data(ROWS)
    student = RandomStudent(num_classes=2)
    given = GivenDraws(ROWS, {"label-dropout": torch.zeros(ROWS, dtype=torch.float64)})
    options = {"instant_share": 0.75, "derivative": "central"}
    guided = mean_flow(velocity="data", guidance_min=3.0, guidance_max=3.0, guidance_mixing=0.5, **options)
    plain = mean_flow(velocity="data", **options)
    null = torch.full_like(labels, 2)
    found = losses(guided, student, None, given, x, labels)["student"].per_sample
    torch.testing.assert_close(found, losses(plain, student, None, given, x, null)["student"].per_sample)


def test_improved_takes_its_own_velocity_as_tangent():
    # With the tangent n - x in place of u(x_t, t, t), the two objectives would have equal rows.
    student, x = RandomStudent(), GivenDraws(ROWS, seed=4).noise("x", (3,))
    draws = GivenDraws(ROWS)
    ours = losses(improved(), student, None, draws, x)["student"].per_sample
    plain = losses(mean_flow(velocity="data"), student, None, draws, x)["student"].per_sample
    moving, instant = draws.split(0.25)
    torch.testing.assert_close(ours[instant], plain[instant])
    assert (ours - plain)[moving].abs().median() > 1e-3

    from freeflow_meanflow.step import time_pairs

    t, s, _ = time_pairs(draws, ImprovedMeanFlowConfig(**PLAIN))
    x_t = linear_interpolate(x, draws.noise("noise", (3,)), t)
    ones = torch.ones_like(t)
    with torch.no_grad():
        v = student(x_t, t, t, None, ones)
        u, along = torch.func.jvp(lambda a, b: student(a, b, s, None, ones), (x_t, t), (v, torch.ones_like(t)))
    velocity = draws.noise("noise", (3,)) - x
    expected = (u + (t - s).unsqueeze(1) * along - velocity).square().sum(1)
    torch.testing.assert_close(ours[moving], expected[moving])
