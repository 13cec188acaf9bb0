"""The closed-form velocity against everything it must agree with: densities, samples, exact maps, the path itself."""

import itertools
import math

import pytest
import torch
from freeflow_toy.gaussian_mixture import GaussianMixtureTeacher
from hypothesis import given, settings
from hypothesis import strategies as st

from freeflow_core.errors import ConfigError
from freeflow_core.math.flow import linear_interpolate, linear_velocity
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.types import Guidance

F64 = torch.float64


def draws(n, seed=0):
    return PhiloxDraws(seed, torch.arange(n), dtype=F64)


def times(value, n):
    return torch.full((n,), value, dtype=F64)


def full_mixture():
    means = torch.tensor([[1.0, -0.5], [-1.5, 0.3], [0.2, 2.0]])
    factors = torch.tensor([[[0.6, 0.0], [0.4, 0.3]], [[0.5, 0.0], [-0.2, 0.4]], [[0.2, 0.0], [0.0, 0.7]]]).double()
    return GaussianMixtureTeacher(
        means, covariances=factors @ factors.mT, weights=torch.tensor([1.0, 2.0, 1.0]), labels=torch.tensor([0, 1, 1])
    )


def single(dim=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(dim, dim, dtype=F64, generator=generator) * 0.7
    mean = torch.randn(1, dim, dtype=F64, generator=generator)
    return GaussianMixtureTeacher(mean, covariances=(factor @ factor.T + 0.05 * torch.eye(dim)).unsqueeze(0))


def test_velocity_is_the_regression_of_noise_minus_data():
    """E[(n - x - v(x_t)) phi(x_t)] = 0 for every phi, which characterises the conditional expectation."""
    n, teacher = 100_000, full_mixture()
    source = draws(n)
    condition = source.integers("label", 2)
    x, noise = teacher.sample_data(source, condition), source.noise("noise", (2,))
    t = source.uniform("t")
    x_t = linear_interpolate(x, noise, t)
    residual = linear_velocity(x, noise) - teacher.velocity(x_t, t, condition)
    for phi in (x_t * 0 + 1, x_t, x_t.square(), x_t.sin(), x_t.flip(1) * t.unsqueeze(1), x_t * condition.unsqueeze(1)):
        product = residual * phi
        error = product.mean(0).abs() / (product.std(0) / math.sqrt(n))
        assert (error < 4).all(), error
        wrong = (residual + 0.05) * (phi.abs() + 0.1)
        assert (wrong.mean(0).abs() / (wrong.std(0) / math.sqrt(n)) > 4).any()


@pytest.mark.parametrize("dimension", [1, 2])
@pytest.mark.parametrize("label", [0, 1, 2])
def test_continuity_equation(dimension, label):
    """d/dt log p_t = -div v - v . grad log p_t, the time derivative by central differences."""
    if dimension == 2:
        teacher = full_mixture()
    else:
        teacher = GaussianMixtureTeacher(
            torch.tensor([[1.0], [-1.0], [2.0]]), stds=torch.tensor([0.3, 0.5, 0.2]), labels=torch.tensor([0, 1, 1])
        )
    n, h = 50, 1e-5
    x = 2 * draws(n).noise("x", (dimension,))
    t = 0.05 + 0.9 * draws(n).uniform("t")
    condition = torch.full((n,), label)
    dt = (teacher.log_density(x, t + h, condition) - teacher.log_density(x, t - h, condition)) / (2 * h)
    v, divergence = teacher.velocity(x, t, condition), torch.zeros(n, dtype=F64)
    for axis in range(dimension):
        tangent = torch.zeros_like(x)
        tangent[:, axis] = 1
        derivative = torch.func.jvp(lambda y: teacher.velocity(y, t, condition), (x,), (tangent,))[1]
        divergence += derivative[:, axis]
    expected = -divergence - (v * teacher.score(x, t, condition)).sum(1)
    torch.testing.assert_close(dt, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("label", [0, 1, 2])
def test_score_is_the_gradient_and_follows_from_the_velocity(label):
    teacher, n = full_mixture(), 40
    x = (2 * draws(n).noise("x", (2,))).requires_grad_()
    t, condition = draws(n).uniform("t"), torch.full((n,), label)
    (gradient,) = torch.autograd.grad(teacher.log_density(x, t, condition).sum(), x)
    torch.testing.assert_close(teacher.score(x, t, condition), gradient, rtol=1e-10, atol=1e-10)
    v, column = teacher.velocity(x, t, condition), t.unsqueeze(1)
    torch.testing.assert_close(-(x + (1 - column) * v) / column, gradient, rtol=1e-9, atol=1e-9)


def test_ends_of_time_are_exact():
    """At t = 0 the noise is unknown, so v = -x; at t = 1 the data is unknown, so v = x - E[x | c]."""
    teacher = full_mixture()
    x = 3 * draws(30).noise("x", (2,))
    for label, mean in ((0, [1.0, -0.5]), (1, [-2.8 / 3, 2.6 / 3]), (2, [-0.45, 0.525])):
        condition = torch.full((30,), label)
        torch.testing.assert_close(teacher.velocity(x, times(0.0, 30), condition), -x, rtol=0, atol=1e-12)
        expected = x - torch.tensor(mean, dtype=F64)
        torch.testing.assert_close(teacher.velocity(x, times(1.0, 30), condition), expected, rtol=0, atol=1e-6)


def test_far_from_every_mode_nothing_overflows():
    teacher = full_mixture()
    x = torch.full((4, 2), 1e6)
    for t in (0.0, 0.5, 1.0):
        for derivative in torch.func.jvp(
            lambda y, t=t: teacher.velocity(y, times(t, 4), torch.tensor([0, 1, 2, 0])), (x,), (torch.ones_like(x),)
        ):
            assert derivative.isfinite().all()


def test_isotropic_and_full_covariances_agree_in_any_shape():
    means = draws(3).noise("means", (2, 1, 3))
    stds = torch.tensor([0.3, 1.0, 2.0])
    flat = stds.double().square()[:, None, None] * torch.eye(6, dtype=F64)
    isotropic, full = GaussianMixtureTeacher(means, stds=stds), GaussianMixtureTeacher(means, covariances=flat)
    x, t = draws(20).noise("x", (2, 1, 3)), draws(20).uniform("t")
    assert isotropic.sample_shape == (2, 1, 3)
    torch.testing.assert_close(isotropic.velocity(x, t, None), full.velocity(x, t, None), rtol=1e-6, atol=1e-6)
    per_entry = GaussianMixtureTeacher(means, stds=stds[:, None, None, None].expand(3, 2, 1, 3))
    torch.testing.assert_close(isotropic.velocity(x, t, None), per_entry.velocity(x, t, None))


def test_vmap_and_forward_mode_agree_with_the_batch():
    teacher, n = full_mixture(), 7
    x, t, label = draws(n).noise("x", (2,)), draws(n).uniform("t"), torch.arange(n) % 3

    def one(x, t, label):
        return teacher.velocity(x.unsqueeze(0), t.unsqueeze(0), label.unsqueeze(0)).squeeze(0)

    torch.testing.assert_close(torch.func.vmap(one)(x, t, label), teacher.velocity(x, t, label))
    h = 1e-6
    exact = torch.func.jvp(lambda t: teacher.velocity(x, t, label), (t,), (torch.ones_like(t),))[1]
    difference = (teacher.velocity(x, t + h, label) - teacher.velocity(x, t - h, label)) / (2 * h)
    torch.testing.assert_close(exact, difference, rtol=1e-6, atol=1e-6)


unit = st.floats(0, 1, allow_subnormal=False)


@settings(max_examples=60, deadline=None)
@given(t=unit, r=unit, s=unit, dim=st.integers(1, 4), seed=st.integers(0, 100))
def test_exact_map_is_a_semigroup(t, r, s, dim, seed):
    teacher, n = single(dim, seed), 3
    x = draws(n, seed).noise("x", (dim,))
    t, r, s = times(t, n), times(r, n), times(s, n)
    direct = teacher.exact_flow_map(x, t, s)
    through = teacher.exact_flow_map(teacher.exact_flow_map(x, t, r), r, s)
    torch.testing.assert_close(through, direct, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(teacher.exact_flow_map(x, t, t), x, rtol=1e-12, atol=1e-12)


def test_reference_map_agrees_with_the_exact_one():
    teacher, n = single(), 12
    x = draws(n).noise("x", (3,))
    t, s = 0.5 + 0.5 * draws(n).uniform("t"), 0.5 * draws(n).uniform("s")
    t[0], s[0], s[1], t[2], s[2] = 1.0, 0.0, t[1], 0.3, 0.8  # the whole way, nowhere, and backwards
    error = (teacher.reference_flow_map(x, t, s) - teacher.exact_flow_map(x, t, s)).abs().max()
    assert error < 1e-9


def test_exact_map_per_class_and_its_refusal():
    means = torch.tensor([[2.0, 0.0], [-1.0, 1.0]])
    teacher = GaussianMixtureTeacher(means, stds=torch.tensor([0.5, 1.5]), labels=torch.tensor([0, 1]))
    x, label = draws(6).noise("x", (2,)), torch.arange(6) % 2
    exact = teacher.exact_flow_map(x, times(1.0, 6), times(0.1, 6), label)
    reference = teacher.reference_flow_map(x, times(1.0, 6), times(0.1, 6), label)
    assert (exact - reference).abs().max() < 1e-9
    with pytest.raises(ConfigError, match="reference_flow_map"):
        teacher.exact_flow_map(x, times(1.0, 6), times(0.0, 6), teacher.null_condition(label))


def test_reference_map_pushes_the_prior_to_the_mixture():
    teacher, n = full_mixture(), 400
    condition = torch.ones(n, dtype=torch.long)
    z = draws(n).noise("z", (2,))
    x = teacher.reference_flow_map(z, times(1.0, n), times(0.0, n), condition)
    data = teacher.sample_data(draws(100_000, seed=1), torch.ones(100_000, dtype=torch.long))
    for moment in (lambda y: y, lambda y: y.square(), lambda y: y.prod(1, keepdim=True), lambda y: y.sin()):
        got, expected = moment(x), moment(data)
        assert ((got.mean(0) - expected.mean(0)).abs() < 4.5 * got.std(0) / math.sqrt(n)).all()


def test_guided_reference_map_of_gaussian_classes():
    """Two classes of equal covariance on a line: inside the interval the guided field is known from its parts."""
    teacher, n = full_mixture(), 5
    x, label = draws(n).noise("x", (2,)), torch.arange(n) % 2
    guidance = Guidance(torch.tensor([1.0, 1.5, 2.0, 0.0, 3.0]), 0.25, 0.7)
    t, s = times(1.0, n), times(0.1, n)
    whole = teacher.reference_flow_map(x, t, s, label, guidance)
    y = teacher.reference_flow_map(x, t, times(0.7, n), label)
    grid = torch.linspace(0.7, 0.25, 301, dtype=F64)
    for start, end in itertools.pairwise(grid):  # an independent RK4
        h, a, b, c = end - start, start.expand(n), ((start + end) / 2).expand(n), end.expand(n)
        k1 = teacher.guided_velocity(y, a, label, guidance.weight)
        k2 = teacher.guided_velocity(y + h / 2 * k1, b, label, guidance.weight)
        k3 = teacher.guided_velocity(y + h / 2 * k2, b, label, guidance.weight)
        k4 = teacher.guided_velocity(y + h * k3, c, label, guidance.weight)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    y = teacher.reference_flow_map(y, times(0.25, n), s, label)
    torch.testing.assert_close(whole, y, rtol=1e-8, atol=1e-8)
    unguided = teacher.reference_flow_map(x, t, s, label)
    torch.testing.assert_close(whole[0], unguided[0], rtol=0, atol=1e-9)
    assert ((whole - unguided)[1:].abs().amax(1) > 0.02).all()


def test_null_class_is_the_weighted_sum_of_the_classes():
    teacher, n = full_mixture(), 10
    x, t = draws(n).noise("x", (2,)), draws(n).uniform("t")
    parts = [teacher.log_density(x, t, torch.full((n,), c)).exp() for c in range(2)]
    whole = teacher.log_density(x, t, torch.full((n,), 2)).exp()
    torch.testing.assert_close(0.25 * parts[0] + 0.75 * parts[1], whole)


def test_conditions_follow_the_class_probabilities():
    teacher, n = full_mixture(), 40_000
    labels = teacher.sample_condition(draws(n))
    assert abs(float((labels == 1).double().mean()) - 0.75) < 4 * math.sqrt(0.75 * 0.25 / n)
    assert teacher.balanced_condition(torch.arange(5)).tolist() == [0, 1, 0, 1, 0]
    assert teacher.null_condition(labels[:3]).tolist() == [2, 2, 2]
    torch.testing.assert_close(labels[5:9], teacher.sample_condition(draws(n).rows(torch.arange(5, 9))))


def test_samples_depend_on_the_index_alone_and_have_the_right_moments():
    teacher, n = full_mixture(), 100_000
    x = teacher.sample_data(draws(n), torch.full((n,), 2))
    torch.testing.assert_close(
        teacher.sample_data(draws(n).rows(torch.tensor([7, 3])), torch.tensor([2, 2])), x[[7, 3]]
    )
    assert (x.mean(0) - torch.tensor([-0.45, 0.525])).abs().max() < 0.02
    first = teacher.sample_data(draws(n), torch.zeros(n, dtype=torch.long))
    expected = torch.tensor([[0.36, 0.24], [0.24, 0.25]], dtype=F64)
    torch.testing.assert_close(first.T.cov(), expected, rtol=0, atol=0.01)


def test_unconditional_mixture_has_no_null_class():
    teacher = single()
    assert teacher.num_classes is None
    assert teacher.sample_condition(draws(3)) is None
    assert teacher.balanced_condition(torch.arange(3)) is None
    with pytest.raises(ConfigError, match="cannot be guided"):
        teacher.null_condition(None)
    with pytest.raises(ValueError, match="condition must be None"):
        teacher.velocity(torch.zeros(1, 3), torch.zeros(1), torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stds": torch.ones(3)}, r"stds .* shape \(2,\), got \(3,\)"),
        ({"stds": torch.tensor([1.0, -1.0])}, "positive"),
        ({"covariances": torch.stack([torch.eye(2), -torch.eye(2)])}, "positive definite"),
        ({"stds": torch.ones(2), "weights": torch.tensor([1.0, 0.0])}, "must be positive"),
        ({"stds": torch.ones(2), "labels": torch.tensor([0, 2])}, r"every class from 0 on, got the classes \[0, 2\]"),
    ],
)
def test_bad_components_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        GaussianMixtureTeacher(torch.zeros(2, 2), **arguments)
