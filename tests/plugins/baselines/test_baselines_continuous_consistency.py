"""sCM: the tangent against TrigFlow's own formula on any network, 0 at the exact map, normalisation and warm-up."""

import math
from typing import Any

import pytest
import torch
from exact_maps import RandomStudent, at_exact_map, at_guided_map, gaussian_teacher, largest, normal_data
from freeflow_baselines.config import ContinuousConsistencyConfig
from freeflow_baselines.continuous_consistency import ContinuousConsistency, trigflow_tangent
from freeflow_baselines.shared import TIME_WEIGHT, TimeWeight, weighted_losses
from objective_helpers import GivenDraws, build, flip_derivatives, losses, models, parameter_gradients, progress

from freeflow_core.math.flow import logit_normal

ROWS = 256
PLAIN: dict[str, Any] = {"weighting": "none", "tangent_normalisation": "none", "prior_weight": False}


def scm(**options):
    return build(ContinuousConsistency, ContinuousConsistencyConfig(**options))


@pytest.mark.parametrize("std", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("warmup", [0.0, 0.3, 1.0])
def test_tangent_is_trigflows_on_any_network(std, warmup):
    """-cos^2 (sd F - dx'/dtau) - r [cos sin x' + sd J_F(cos sin dx', cos sin)], with F made from u, by forward mode."""
    student, teacher = RandomStudent(), gaussian_teacher(3)
    t = logit_normal(GivenDraws(ROWS).uniform("t"), 0.0, 1.5)
    x_t, ones = normal_data(), torch.ones(ROWS, dtype=torch.float64)

    def f(x, t):
        return x - t[:, None] * student(x, t, 0 * t, None, ones)

    def to_linear(x, tau):
        t = std * tau.tan() / (1 + std * tau.tan())
        return x * ((1 - t).square() + (t / std).square()).sqrt()[:, None], t

    def network(x, tau):  # F, from f = cos x' - sin sd F
        return (tau.cos()[:, None] * x - f(*to_linear(x, tau))) / (std * tau.sin()[:, None])

    tau = torch.atan(t / (std * (1 - t)))
    cos, sin = tau.cos()[:, None], tau.sin()[:, None]
    rho = ((1 - t).square() + (t / std).square()).sqrt()[:, None]
    x, v = x_t / rho, teacher.velocity(x_t, t, None)
    x_0, n = x_t - t[:, None] * v, x_t + (1 - t)[:, None] * v
    along = -sin * x_0 + cos * std * n  # dx'/dtau: TrigFlow's noise has deviation sd, ours 1
    with torch.no_grad():
        value, jvp = torch.func.jvp(network, (x, tau), (cos * sin * along, (cos * sin)[:, 0]))
        expected = -cos.square() * (std * value - along) - warmup * (cos * sin * x + std * jvp)
        u, du_dt = torch.func.jvp(lambda a, b: student(a, b, 0 * b, None, ones), (x_t, t), (v, torch.ones_like(t)))
        g, weight = trigflow_tangent(u, v, du_dt, t, std, warmup)
    torch.testing.assert_close(g, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(weight, rho[:, 0])
    if warmup == 1.0:  # cos df/dtau, for any network
        tangent = torch.func.jvp(lambda a, b: f(*to_linear(a, b)), (x, tau), (along, torch.ones_like(tau)))[1]
        torch.testing.assert_close(g, cos * tangent, rtol=1e-9, atol=1e-11)


def residual(sign=1.0, dtype=torch.float64, **options):
    return largest(at_exact_map(scm(**{**PLAIN, **options}), sign, dtype))


def test_the_exact_map_has_no_tangent():
    assert residual() < 1e-12
    assert residual(dtype=torch.float32) < 1e-5
    assert residual(derivative="central", derivative_step=1e-4) < 1e-5
    assert residual(weighting="learned", tangent_normalisation="norm", prior_weight=True) < 1e-9
    assert largest(at_guided_map(scm(**PLAIN, guidance_min=2.5, guidance_max=2.5))) < 1e-11


def test_wrong_signs_show(monkeypatch):
    assert residual(sign=-1) > 0.1
    flip_derivatives(monkeypatch)
    assert residual() > 0.1


def gradient_of(student, at=None, **options):
    found = losses(scm(**{**PLAIN, **options}), student, gaussian_teacher(3), GivenDraws(ROWS), normal_data(), at=at)[
        "student"
    ]
    return parameter_gradients(found.per_sample, student)


@pytest.mark.parametrize("kind", ["norm", "rms", "clip", "none"])
def test_gradient_is_that_of_f_towards_the_normalised_tangent(kind):
    # d/dtheta ||F - sg(F + g)||^2 / dim = -2 g . dF / dim, and dF = rho du.
    student, teacher = RandomStudent(), gaussian_teacher(3)
    draws = GivenDraws(ROWS)
    t = logit_normal(draws.uniform("time"), -1.0, 1.4)
    x_t = (1 - t)[:, None] * normal_data() + t[:, None] * draws.noise("noise", (3,))
    v, ones = teacher.velocity(x_t, t, None), torch.ones_like(t)
    u, along = torch.func.jvp(lambda a, b: student(a, b, 0 * b, None, ones), (x_t, t), (v, ones))
    g, rho = trigflow_tangent(u.detach(), v, along.detach(), t, 0.5, 1.0)
    norm = g.norm(dim=1, keepdim=True)
    step = {"norm": g / (norm + 0.1), "rms": g / (norm / math.sqrt(3) + 0.1), "clip": g.clamp(-1, 1), "none": g}[kind]
    surrogate = (-2 / 3 * rho[:, None] * step * student(x_t, t, 0 * t, None, ones)).sum(1)
    torch.testing.assert_close(
        gradient_of(student, tangent_normalisation=kind), parameter_gradients(surrogate, student)
    )


def test_warmup_begins_with_flow_matching_and_ends_with_the_whole_tangent():
    student = RandomStudent()
    whole = gradient_of(student, tangent_warmup_fraction=0.0)
    torch.testing.assert_close(gradient_of(student, progress(500), tangent_warmup_fraction=0.4), whole)
    start = gradient_of(student, progress(0), tangent_warmup_fraction=0.4)
    middle = gradient_of(student, progress(100), tangent_warmup_fraction=0.4)
    torch.testing.assert_close(middle, 0.75 * start + 0.25 * whole)
    assert (start - whole).norm() > 0.1 * whole.norm()


def test_prior_weight_is_one_over_sigma():
    student, teacher, draws = RandomStudent(), gaussian_teacher(3), GivenDraws(ROWS)
    t = logit_normal(draws.uniform("time"), -1.0, 1.4)
    plain = losses(scm(**PLAIN), student, teacher, draws, normal_data())["student"].per_sample
    weighted = losses(scm(**{**PLAIN, "prior_weight": True}), student, teacher, draws, normal_data())[
        "student"
    ].per_sample
    torch.testing.assert_close(weighted, plain * (1 - t) / t)


def test_learned_weight_settles_at_the_log_of_the_loss_and_keeps_the_roles_apart():
    student, network = RandomStudent(), TimeWeight(1.5).double()
    t, s = GivenDraws(ROWS).uniform("t"), GivenDraws(ROWS).uniform("s")
    assert torch.equal(network(t, s), torch.full((ROWS,), 1.5, dtype=torch.float64))
    square = (normal_data() * student.second.sum()).square().sum(1) + 0.1
    weighted, extra = weighted_losses(models(student, **{TIME_WEIGHT: network}), square, t, s)
    torch.testing.assert_close(weighted, math.exp(-1.5) * square)
    weighted.mean().backward()
    assert network.linear.bias.grad is None
    student.zero_grad()
    extra[TIME_WEIGHT].per_sample.mean().backward()
    assert student.second.grad is None
    with torch.no_grad():
        network.linear.bias.fill_(float(square.mean().log()))
    network.zero_grad()
    weighted_losses(models(student, **{TIME_WEIGHT: network}), square, t, s)[1][
        TIME_WEIGHT
    ].per_sample.mean().backward()
    assert network.linear.bias.grad.abs() < 1e-12
