"""The prediction objective against exact maps, hand-written gradients and flipped signs."""

import pytest
import torch
from exact_maps import ClassTeacher, ExactGuidedStudent, small_student
from freeflow_predictor_corrector.config import PredictionConfig
from freeflow_predictor_corrector.freeflow import FreeFlowPrediction
from freeflow_predictor_corrector.prediction import predict
from objective_helpers import Spy, models, parameter_gradients, philox, progress, step

from freeflow_core.interfaces import Model
from freeflow_core.objective_kit.options import DerivativeOptions
from freeflow_core.objective_kit.passes import Jumps, duration_derivative
from freeflow_core.testing.exact import GaussianStudent, GaussianTeacher

MEAN = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)
STD = torch.tensor([0.4, 1.8, 1.0], dtype=torch.float64)

TOLERANCES = [
    ({"derivative": "forward-mode"}, 1e-12),
    ({"derivative": "central", "derivative_step": 1e-4}, 1e-6),
    ({"derivative": "central"}, 2e-4),
    ({"derivative": "one-sided", "derivative_step": 1e-6}, 1e-5),
]


@pytest.mark.parametrize(("options", "tolerance"), TOLERANCES)
def test_exact_unguided_map_has_no_residual(options, tolerance):
    teacher, student = GaussianTeacher(MEAN, STD), GaussianStudent(MEAN, STD)
    config = PredictionConfig(**options, endpoint_share=0.1)
    loss = step(FreeFlowPrediction(config), models(student, teacher), philox(500))["student"]
    assert loss.terms["prediction_residual"] < tolerance
    assert loss.per_sample.max() < tolerance**2 / config.weight_epsilon * 500


@pytest.mark.parametrize(("options", "tolerance"), TOLERANCES)
def test_exact_guided_map_has_no_residual(options, tolerance):
    teacher = ClassTeacher(dims=2)
    config = PredictionConfig(**options, guidance_min=1.0, guidance_max=3.0, duration_min=1e-3)
    loss = step(FreeFlowPrediction(config), models(ExactGuidedStudent(teacher), teacher), philox(500))["student"]
    assert loss.terms["prediction_residual"] < 10 * tolerance
    assert max(teacher.calls) > 900  # nearly every row needed its unconditional half


def test_guided_map_of_another_weight_has_residual():
    teacher = ClassTeacher(dims=2)
    config = PredictionConfig(guidance_min=2.0, guidance_max=2.0, guidance_interval=(0.0, 0.5))
    loss = step(FreeFlowPrediction(config), models(ExactGuidedStudent(teacher), teacher), philox(200))["student"]
    assert loss.terms["prediction_residual"] > 0.1


def _exact_parts():
    teacher, student = GaussianTeacher(MEAN, STD), GaussianStudent(MEAN, STD)
    z = philox(400).noise("z", (3,))
    d = 0.05 + 0.95 * philox(400).uniform("d")
    one = torch.ones_like(d)
    u, du_ds = torch.func.jvp(lambda s: student(z, one, s, None, None), (1 - d,), (one,))
    return u, -du_ds, teacher.velocity(z - d[:, None] * u, 1 - d, None), d


@pytest.mark.parametrize(("derivative", "velocity"), [(-1, 1), (1, -1), (0, 1)])
def test_each_flipped_sign_is_seen(derivative, velocity):
    u, du_dd, v, d = _exact_parts()
    right = predict(u, du_dd, v, d, power=1, epsilon=1e-2)
    wrong = predict(u, derivative * du_dd, velocity * v, d, power=1, epsilon=1e-2)
    assert right.norm.max() < 1e-12
    assert wrong.norm.mean() > 0.1


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_gradient_is_weighted_residual_times_jacobian(power):
    teacher, student = GaussianTeacher(MEAN[:2], STD[:2]), small_student()
    config = PredictionConfig(derivative="forward-mode", weight_power=power, weight_epsilon=0.03)
    draws = philox(16)
    loss = step(FreeFlowPrediction(config), models(student, teacher), draws)["student"]
    found = parameter_gradients(loss.per_sample, student)

    z, d, one = draws.noise("prior", (2,)), 1 - draws.uniform("duration"), torch.ones(16, dtype=torch.float64)
    with torch.no_grad():
        u, du_ds = torch.func.jvp(lambda s: student(z, one, s, None, one), (1 - d,), (one,))
        v = teacher.velocity(z - d[:, None] * u, 1 - d, None)
        delta = u + d[:, None] * -du_ds - v
        weight = 1 / (delta.square().sum(1) / 2 + 0.03) ** power
    surrogate = (student(z, one, 1 - d, None, one) * weight[:, None] * delta / 2).sum(1)
    torch.testing.assert_close(found, parameter_gradients(surrogate, student), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(loss.per_sample.detach(), 0.5 * weight * delta.square().mean(1))
    torch.testing.assert_close(loss.terms["prediction_residual"], delta.square().mean(1).sqrt().mean())
    torch.testing.assert_close(loss.terms["weight_mean"], weight.mean())


def _derivative(student, z, d, method, step):
    one = torch.ones_like(d)
    value = student(z, one, 1 - d, None, one).detach()
    model = Model(student, student)
    options = DerivativeOptions(derivative=method, derivative_step=step)
    return duration_derivative(model, Jumps(z, one, 1 - d, None, one), value=value, options=options)


EDGES = torch.tensor([1.0, 1.0 - 1e-4, 0.999, 0.5, 0.3, 1e-3, 1e-9], dtype=torch.float64)


@pytest.mark.parametrize("method", ["central", "one-sided"])
def test_no_end_time_outside_the_interval_is_asked(method):
    student = Spy(small_student())
    d = torch.cat([EDGES, philox(200).uniform("d")])
    _derivative(student, philox(len(d)).noise("z", (2,)), d, method, 0.02)
    seen = torch.cat([call[2] for call in student.calls])
    assert 0 <= seen.min() <= seen.max() <= 1


def test_derivative_check_is_logged_at_its_interval():
    teacher, student = GaussianTeacher(MEAN[:2], STD[:2]), small_student()
    objective = FreeFlowPrediction(PredictionConfig(derivative="one-sided", check_derivative_every=10))
    off = step(objective, models(student, teacher), philox(8), at=progress(step=11))["student"].terms
    on = step(objective, models(student, teacher), philox(8), at=progress(step=20))["student"].terms
    assert "derivative_relative_error" not in off
    assert 1e-6 < on["derivative_relative_error"] < 0.05


def test_teacher_is_asked_within_its_own_times():
    teacher = ClassTeacher(dims=2)
    teacher.time_range = (0.2, 0.7)
    step(FreeFlowPrediction(PredictionConfig()), models(ExactGuidedStudent(teacher), teacher), philox(64))
    ((times, _),) = teacher.asked
    assert (times.min(), times.max()) == (0.2, 0.7)
