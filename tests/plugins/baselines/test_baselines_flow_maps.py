"""Lagrangian and Eulerian distillation: exact maps, any network, gradients against a double derivative, options."""

from typing import Any

import pytest
import torch
from exact_maps import (
    ClassTeacher,
    ExactGaussianStudent,
    PlainStudent,
    RandomStudent,
    at_exact_map,
    at_guided_map,
    gaussian_teacher,
    largest,
    normal_data,
)
from freeflow_baselines.config import EulerianConfig, LagrangianConfig
from freeflow_baselines.eulerian import Eulerian
from freeflow_baselines.lagrangian import Lagrangian
from freeflow_baselines.shared import TIME_WEIGHT, time_pairs
from freeflow_guidance.autoguidance import AutoguidedTeacher
from objective_helpers import GivenDraws, build, flip_derivatives, losses, parameter_gradients, progress, spied, step

from freeflow_core.math.flow import logit_normal
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.testing.exact import GaussianTeacher
from freeflow_core.types import Batch

ROWS = 256
PLAIN: dict[str, Any] = {"weighting": "none", "instant_share": 0.25}
METHODS = [
    ("lagrangian", {"gradient": "target"}),
    ("lagrangian", {"gradient": "derivative", "derivative_step": 1e-4}),
    ("lagrangian", {"gradient": "target", "start": "prior"}),
    ("lagrangian", {"gradient": "derivative", "derivative_step": 1e-4, "times": "duration"}),
    ("eulerian", {"gradient": "target"}),
    ("eulerian", {"gradient": "target", "times": "duration"}),
    ("eulerian", {"gradient": "full", "derivative_step": 1e-4}),
    ("eulerian", {"gradient": "time", "derivative_step": 1e-4}),
]


def lagrangian(**options):
    return build(Lagrangian, LagrangianConfig(**{**PLAIN, **options}))


def eulerian(**options):
    return build(Eulerian, EulerianConfig(**{**PLAIN, **options}))


def objective_of(name, **options):
    return (lagrangian if name == "lagrangian" else eulerian)(**options)


def residual(name, sign=1.0, dtype=torch.float64, **options):
    return largest(at_exact_map(objective_of(name, **options), sign, dtype))


@pytest.mark.parametrize(("name", "options"), METHODS)
def test_residual_of_the_exact_map(name, options):
    exact = options["gradient"] == "target"
    assert residual(name, **options) < (1e-12 if exact else 1e-5)
    if exact:
        assert residual(name, dtype=torch.float32, **options) < 1e-5


@pytest.mark.parametrize(("name", "options"), METHODS)
def test_wrong_signs_show(name, options, monkeypatch):
    assert residual(name, sign=-1, **options) > 0.1
    flip_derivatives(monkeypatch)
    assert residual(name, **options) > 0.1


@pytest.mark.parametrize("name", ["lagrangian", "eulerian"])
def test_guided_teacher(name):
    made = objective_of(name, gradient="target", guidance_min=1.0, guidance_max=3.0)
    assert largest(at_guided_map(made)) < 1e-10


class AutoguidedStudent(PlainStudent):
    """The map of a Gaussian guided by a wider one of zero mean: x_s / x_t = (a_s / a_t)^g (b_s / b_t)^(1-g)."""

    def __init__(self, main, guide):
        super().__init__()
        self.stds, self.sample_shape = (main.std, guide.std), main.sample_shape
        self.scale = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x_t, t, s, condition, guidance):
        main, guide = (
            0.5 * torch.log(((1 - s) ** 2 * std**2 + s**2) / ((1 - t) ** 2 * std**2 + t**2))
            for s, t in [(s[:, None], t[:, None])]
            for std in self.stds
        )
        return -torch.expm1(guidance[:, None] * main + (1 - guidance[:, None]) * guide) * x_t / (t - s)[:, None]


def test_autoguidance_is_a_teacher_like_any_other():
    zero, std = torch.zeros(3, dtype=torch.float64), torch.tensor([0.4, 0.8, 1.5], dtype=torch.float64)
    main, guide = GaussianTeacher(zero, std), GaussianTeacher(zero, 1.5 * std)
    for teacher, low, high in (
        (AutoguidedTeacher(main, guide), 0.0, 1e-10),
        (AutoguidedTeacher(guide, main), 0.1, torch.inf),
    ):
        made = eulerian(guidance_min=1.0, guidance_max=3.0, instant_share=0.0)
        found = losses(made, AutoguidedStudent(main, guide), teacher, GivenDraws(ROWS), normal_data())["student"]
        assert low <= found.per_sample.detach().max().sqrt() < high


def setting(student, teacher, config):
    """x_t, t, s, and the teacher's velocity, as the objectives draw them."""
    draws = GivenDraws(ROWS)
    t, s, _ = time_pairs(draws, config)
    x_t = (1 - t)[:, None] * normal_data() + t[:, None] * draws.noise("noise", (3,))
    return x_t, t, s, teacher.velocity(x_t, t, None)


def test_eulerian_residual_is_that_of_the_flow_map_for_any_network():
    student, teacher = RandomStudent(), gaussian_teacher(3)
    x_t, t, s, v = setting(student, teacher, EulerianConfig(**PLAIN))
    ones = torch.ones_like(t)

    def jump(x, t):
        return x - (t - s)[:, None] * student(x, t, s, None, ones)

    # d/dt X(x_t, t, s) + v . grad X, at s = t rows v - u.
    expected = torch.func.jvp(jump, (x_t, t), (v, ones))[1].square().mean(1)
    for options, limit in (({"gradient": "target"}, 1e-10), ({"gradient": "full", "derivative_step": 1e-4}, 1e-5)):
        found = losses(eulerian(**options), student, teacher, GivenDraws(ROWS), normal_data())["student"].per_sample
        torch.testing.assert_close(found, expected, rtol=limit, atol=limit)


def reference_gradient(name, gradient, student, teacher):
    """The parameters' gradient by reverse over forward mode."""
    config = LagrangianConfig(**PLAIN) if name == "lagrangian" else EulerianConfig(**PLAIN)
    x_t, t, s, v = setting(student, teacher, config)
    ones, length = torch.ones_like(t), (t - s)[:, None]
    u = student(x_t, t, s, None, ones)
    if name == "lagrangian":
        du = torch.func.jvp(lambda b: student(x_t, t, b, None, ones), (s,), (ones,))[1]
        x_s = (x_t - length * u).detach()
        difference = u - length * (du if gradient == "derivative" else du.detach()) - teacher.velocity(x_s, s, None)
    else:
        total = torch.func.jvp(lambda a, b: student(a, b, s, None, ones), (x_t, t), (v, ones))[1]
        partial = torch.func.jvp(lambda b: student(x_t, b, s, None, ones), (t,), (ones,))[1]
        kept = {"full": total, "time": partial + (total - partial).detach(), "target": total.detach()}[gradient]
        difference = v - u - length * kept
    return parameter_gradients(difference.square().mean(1), student)


@pytest.mark.parametrize(
    ("name", "gradient"),
    [
        (n, g)
        for n, kinds in (("lagrangian", ("derivative", "target")), ("eulerian", ("full", "time", "target")))
        for g in kinds
    ],
)
def test_gradient_flows_where_the_option_says(name, gradient):
    student, teacher = RandomStudent(), gaussian_teacher(3)
    made = objective_of(name, gradient=gradient, derivative_step=1e-4)
    found = losses(made, student, teacher, GivenDraws(ROWS), normal_data())["student"].per_sample
    mine = parameter_gradients(found, student)
    expected = reference_gradient(name, gradient, student, teacher)
    assert (mine - expected).norm() < 1e-5 * expected.norm()
    others = {"lagrangian": ("derivative", "target"), "eulerian": ("full", "time", "target")}[name]
    for other in others:
        if other != gradient:
            assert (mine - reference_gradient(name, other, student, teacher)).norm() > 1e-2 * expected.norm()


def test_ayf_target_is_the_normalised_tangent_with_warmup():
    student, teacher = RandomStudent(), gaussian_teacher(3)
    x_t, t, s, v = setting(student, teacher, EulerianConfig(**PLAIN))
    ones, length = torch.ones_like(t), (t - s)[:, None]
    with torch.no_grad():
        u, along = torch.func.jvp(lambda a, b: student(a, b, s, None, ones), (x_t, t), (v, ones))
    for images, r in ((0, 0.0), (100, 0.5), (500, 0.99)):
        g = v - u - r * length * along
        target = torch.where((t > s)[:, None], g / (g.norm(dim=1, keepdim=True) + 0.1), g)
        made = eulerian(tangent_normalisation=True, tangent_warmup_fraction=0.2, tangent_warmup_end=0.99)
        found = losses(made, student, teacher, GivenDraws(ROWS), normal_data(), at=progress(images))[
            "student"
        ].per_sample
        torch.testing.assert_close(found, target.square().mean(1))
    moved = parameter_gradients(found, student)
    torch.testing.assert_close(
        moved, parameter_gradients((-2 / 3 * target * student(x_t, t, s, None, ones)).sum(1), student)
    )


def test_times():
    draws = PhiloxDraws(0, torch.arange(8000))
    t, s, moving = time_pairs(draws, LagrangianConfig(instant_share=0.0))
    assert torch.equal(moving, torch.arange(8000))
    assert (s < t).all()
    assert float(t.mean()) == pytest.approx(2 / 3, abs=0.01)  # uniform on the triangle
    assert float(s.mean()) == pytest.approx(1 / 3, abs=0.01)
    durations = {"times": "duration", "duration_location": -0.5, "duration_scale": 1.2}
    t, s, _ = time_pairs(draws, EulerianConfig(instant_share=0.0, **durations))
    torch.testing.assert_close(t - s, logit_normal(draws.uniform("time"), -0.5, 1.2))
    torch.testing.assert_close(s / (1 - (t - s)), draws.uniform("end-time"))
    assert t.max() < 1


def test_instants_are_asked_of_data_alone():
    assert LagrangianConfig().instant_share == 0
    assert LagrangianConfig(velocity="data").instant_share == 0.75
    assert LagrangianConfig(velocity="data", instant_share=0.5).instant_share == 0.5
    assert EulerianConfig().instant_share == 0.75  # it diverges without


@pytest.mark.parametrize("name", ["lagrangian", "eulerian"])
def test_shares_passes_and_roles(name):
    teacher, student = ClassTeacher(), RandomStudent(num_classes=2)
    x, labels = teacher.data(ROWS)
    for gradient, rows, bare_rows in (
        ("target", ROWS, [ROWS // 4]),
        ("derivative" if name == "lagrangian" else "full", ROWS + 2 * ROWS // 4, []),
    ):
        teacher.calls.clear()
        networks, wrapped, bare = spied(teacher, student)
        made = objective_of(name, gradient=gradient, instant_share=0.75)
        found = step(made, networks, GivenDraws(ROWS), Batch(x, labels))
        ((_, t, s, _, _),) = wrapped.calls
        assert len(t) == rows
        assert int((t[:ROWS] == s[:ROWS]).sum()) == ROWS * 3 // 4
        assert (s >= 0).all()
        assert (t <= 1).all()
        assert (s <= t).all()
        assert [len(call[0]) for call in bare.calls] == bare_rows
        assert not any(bare.gradient)
        assert teacher.calls == [ROWS]
        assert found["student"].per_sample.shape == (ROWS,)


@pytest.mark.parametrize("name", ["lagrangian", "eulerian"])
def test_learned_weighting_takes_the_sum_over_dimensions(name):
    student, teacher, draws = RandomStudent(), gaussian_teacher(3), GivenDraws(ROWS)
    plain = losses(objective_of(name), student, teacher, draws, normal_data())
    learned = losses(objective_of(name, weighting="learned"), student, teacher, draws, normal_data())
    assert plain.keys() == {"student"}
    assert learned.keys() == {"student", TIME_WEIGHT}
    torch.testing.assert_close(learned["student"].per_sample, plain["student"].per_sample)  # exp(-log 3) of the sum
    assert objective_of(name, weighting="none").roles(student, teacher) == {}
    assert objective_of(name, weighting="learned").roles(student, teacher)[TIME_WEIGHT].trainable


def test_from_the_prior_no_data_is_seen_and_conditions_come_from_the_teacher():
    teacher, student = ClassTeacher(), RandomStudent(num_classes=2)
    (networks, wrapped, bare), draws = spied(teacher, student), GivenDraws(ROWS)
    step(lagrangian(start="prior", gradient="target", instant_share=0.75), networks, draws)
    ((x, t, s, condition, _),) = wrapped.calls
    assert torch.equal(x, draws.noise("prior", (3,)))
    assert (t == 1).all()
    assert torch.equal(s, draws.uniform("end-time"))
    assert torch.equal(condition, teacher.sample_condition(draws))
    assert [len(call[0]) for call in bare.calls] == [ROWS]  # every row moves, whatever instant_share says


def test_self_distillation_uses_its_own_velocity_at_the_end_point():
    teacher = gaussian_teacher()
    student, draws = ExactGaussianStudent(teacher), GivenDraws(ROWS)
    found = losses(lagrangian(velocity="data", gradient="target"), student, None, draws, normal_data(6))[
        "student"
    ].per_sample
    moving, instant = draws.split(0.25)
    assert found[moving].detach().max().sqrt() < 1e-12  # the exact map, although no teacher said so
    t = time_pairs(draws, LagrangianConfig(**PLAIN))[0][instant]
    x, noise = normal_data(6)[instant], draws.noise("noise", (6,))[instant]
    x_t = (1 - t)[:, None] * x + t[:, None] * noise
    torch.testing.assert_close(found[instant], (student(x_t, t, t, None, None) - (noise - x)).square().mean(1))


@pytest.mark.parametrize("gradient", ["full", "time"])
def test_differences_with_gradient_run_in_full_precision_under_autocast(gradient):
    student, teacher = RandomStudent(dtype=torch.float32), gaussian_teacher(3).float()
    draws, x = GivenDraws(ROWS, dtype=torch.float32), normal_data().float()
    plain = losses(eulerian(gradient=gradient), student, teacher, draws, x)["student"].per_sample
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = losses(eulerian(gradient=gradient), student, teacher, draws, x)["student"].per_sample
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, plain, rtol=0.1, atol=0.1)
