"""Fidelity to the teacher: end points, and the flow-map identity."""

import pytest
import torch
from freeflow_metrics.config import FidelityConfig
from freeflow_metrics.fidelity import FidelityEvaluator, derivative_residual

from freeflow_core.interfaces import EvaluationBatch
from freeflow_core.math.derivative import DerivativeMethod
from freeflow_core.testing.exact import GaussianStudent, GaussianTeacher
from freeflow_core.types import Guidance

MEAN, STD = torch.tensor([0.5, -1.0, 0.0], dtype=torch.float64), torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)


def noise(count=64):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def batch(x=None, reference_x=None, z=None):
    count = next(len(a) for a in (x, reference_x, z) if a is not None)
    guidance = Guidance(torch.ones(count))
    images = torch.zeros(count, 1, 1, 3, dtype=torch.uint8)
    return EvaluationBatch(images, None, x=x, z=z, reference_x=reference_x, guidance=guidance)


def evaluate(context, subject, *batches, **options):
    evaluator = FidelityEvaluator(FidelityConfig(**options))
    evaluator.prepare(context)
    evaluator.reset(subject)
    for item in batches:
        evaluator.update(item)
    return dict(evaluator.compute())


def test_mse_to_the_teacher_s_end_points(evaluation_context):
    x = noise()
    context = evaluation_context()
    assert evaluate(context, "student_jump", batch(x, x)) == {"fidelity_mse": 0}
    uneven = batch(x[:10], x[:10] + 2), batch(x[10:], x[10:])
    assert evaluate(context, "teacher_1_step", *uneven)["fidelity_mse"] == pytest.approx(4 * 10 / 64)
    assert evaluate(context, "student", batch(x)) == {}
    assert evaluate(context, "teacher", batch(x, x)) == {}


@pytest.mark.parametrize(("method", "tolerance"), [("forward-mode", 1e-20), ("central", 1e-6)])
def test_the_exact_student_obeys_the_field(evaluation_context, method, tolerance):
    context = evaluation_context(teacher=GaussianTeacher(MEAN, STD), student=GaussianStudent(MEAN, STD))
    assert evaluate(context, "student", batch(z=noise()), derivative=method)["derivative_residual"] < tolerance


def test_residual_of_a_shifted_student_is_known():
    """Mean off by m with unit deviation: f is off by d m (time s = 1 - d), so -df/dd by -m and v(f, s) by a d m."""
    shift, one = torch.full((3,), 0.3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    teacher, student = GaussianTeacher(0 * one, one), GaussianStudent(shift, one)
    duration, s = 0.75, 0.25
    slope = (s - (1 - s)) / ((1 - s) ** 2 + s**2)
    expected = 0.3**2 * (-1 - slope * duration) ** 2
    found = derivative_residual(
        student, teacher, noise(5), None, None, duration, method=DerivativeMethod.FORWARD_MODE, step=1e-3
    )
    torch.testing.assert_close(found, torch.full((5,), expected, dtype=torch.float64))


def test_only_the_student_s_row_and_only_the_samples_asked_for(evaluation_context):
    teacher, student = GaussianTeacher(MEAN, STD), GaussianStudent(MEAN, STD)
    asked = []
    guided = teacher.guided_velocity
    teacher.guided_velocity = lambda x, *a: (asked.append(len(x)), guided(x, *a))[1]
    context = evaluation_context(teacher=teacher, student=student)
    assert evaluate(context, "student_jump", batch(z=noise())) == {}
    assert asked == []
    evaluate(context, "student", *[batch(z=noise(40))] * 3, derivative_samples=50, durations=(0.5, 1.0))
    assert asked == [40, 40, 10, 10]
    assert evaluate(context, "student", batch(z=noise()), derivative_samples=0) == {}
    assert evaluate(evaluation_context(teacher=teacher), "student", batch(z=noise())) == {}


def test_teacher_is_guided_inside_the_interval_and_student_told_the_weight(evaluation_context):
    seen = []
    told = []
    teacher, student = GaussianTeacher(MEAN, STD), GaussianStudent(MEAN, STD)

    def guided(x, t, condition, weight):
        seen.append((float(t[0]), weight.tolist()))
        return teacher.velocity(x, t, condition)

    teacher.guided_velocity = guided
    student.register_forward_pre_hook(lambda _, arguments: told.append(arguments[4].tolist()))
    guidance = Guidance(torch.tensor([1.0, 3.0]), 0.0, 0.5)
    images = torch.zeros(2, 1, 1, 3, dtype=torch.uint8)
    item = EvaluationBatch(images, None, z=noise(2), guidance=guidance)
    evaluate(evaluation_context(teacher=teacher, student=student), "student", item, durations=(0.25, 0.75))
    assert seen == [(0.75, [1.0, 1.0]), (0.25, [1.0, 3.0])]
    assert all(weights == [1.0, 3.0] for weights in told)


def test_the_teacher_is_asked_within_its_time_range():
    teacher = GaussianTeacher(MEAN, STD)
    teacher.time_range = (0.1, 1.0)
    times = []
    velocity = teacher.velocity
    teacher.velocity = lambda x, t, c: (times.append(float(t[0])), velocity(x, t, c))[1]
    derivative_residual(
        GaussianStudent(MEAN, STD), teacher, noise(2), None, None, 1.0, method=DerivativeMethod.CENTRAL, step=1e-3
    )
    assert times == [0.1]
