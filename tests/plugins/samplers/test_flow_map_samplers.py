"""Samplers that jump with a student, alone or before the teacher."""

import pytest
import torch
from exact_maps import policy_student
from freeflow_samplers.config import FewStepConfig, OneStepConfig, StudentThenTeacherConfig
from freeflow_samplers.flow_map import FewStepSampler, OneStepSampler, StudentThenTeacherSampler
from freeflow_toy.config import MLPStudentConfig
from freeflow_toy.gaussian_mixture import GaussianMixtureTeacher
from freeflow_toy.mlp import MLPStudent

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import BuildContext, StartTimes
from freeflow_core.math.flow import jump_grid, uniform_grid
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.testing.exact import GaussianStudent, GaussianTeacher
from freeflow_core.types import Guidance

F64 = torch.float64
N = 12
MEAN, STD = torch.tensor([0.7, -1.2], dtype=F64), torch.tensor([0.4, 2.0], dtype=F64)
CONTEXT = BuildContext(device=torch.device("cpu"), seed=0, component=lambda *_: None)


def draws(n=N):
    return PhiloxDraws(0, torch.arange(n), dtype=F64)


def noise(n=N):
    return draws(n).noise("z", (2,))


def unguided(n=N):
    return Guidance(torch.ones(n, dtype=F64))


def times(value, n=N):
    return torch.full((n,), value, dtype=F64)


def one_step():
    return OneStepSampler(OneStepConfig())


def few_step(**options):
    return FewStepSampler(FewStepConfig(**options))


def hybrid(**options):
    return StudentThenTeacherSampler(StudentThenTeacherConfig(**options))


def prior_student():
    student = GaussianStudent(MEAN, STD)
    student.start_times = StartTimes.PRIOR
    return student


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_exact_student_hits_the_exact_map(steps):
    teacher, seen = GaussianTeacher(MEAN, STD), []
    grid = uniform_grid(steps)
    samples = few_step().sample(
        GaussianStudent(MEAN, STD), noise(), grid, None, unguided(), on_step=lambda i, t, x: seen.append((i, t, x))
    )
    assert samples.num_evaluations == steps
    assert not samples.x.requires_grad
    for i, t, x in seen:
        assert t == grid[i + 1]
        torch.testing.assert_close(x, teacher.exact_flow_map(noise(), times(1.0), times(float(t))), rtol=0, atol=1e-12)
    assert len(seen) == steps


def test_one_step_is_one_exact_jump():
    exact = GaussianTeacher(MEAN, STD).exact_flow_map(noise(), times(1.0), times(0.0))
    samples = one_step().sample(prior_student(), noise(), uniform_grid(1), None, unguided())
    torch.testing.assert_close(samples.x, exact, rtol=0, atol=1e-13)
    assert samples.num_evaluations == 1


def test_one_step_refuses_two():
    with pytest.raises(ConfigError, match="exactly one step, but the grid has 2"):
        one_step().sample(prior_student(), noise(), uniform_grid(2), None, unguided())


def test_students_of_the_prior_have_no_few_step_mode():
    student = prior_student()
    for renoise in (False, True):
        with pytest.raises(ConfigError, match="student-then-teacher") as error:
            few_step(renoise=renoise).sample(student, noise(), uniform_grid(2), None, unguided(), draws())
        assert "\n" not in str(error.value)
    assert few_step().sample(student, noise(), uniform_grid(1), None, unguided()).num_evaluations == 1
    late = torch.tensor([0.9, 0.0], dtype=F64)
    for sampler in (one_step(), few_step()):
        with pytest.raises(ConfigError, match=r"jump from t = 1 only, but the grid starts at t = 0\.9"):
            sampler.sample(student, noise(), late, None, unguided())
        assert sampler.sample(GaussianStudent(MEAN, STD), noise(), late, None, unguided()).x.isfinite().all()


def test_renoising_jumps_to_data_and_back():
    student, seen = GaussianStudent(MEAN, STD), []
    grid = torch.tensor([1.0, 0.6, 0.3, 0.0], dtype=F64)
    samples = few_step(renoise=True).sample(
        student, noise(), grid, None, unguided(), draws(), on_step=lambda i, t, x: seen.append(x)
    )
    x = noise()
    for i, (time, next_time) in enumerate([(1.0, 0.6), (0.6, 0.3), (0.3, 0.0)]):
        x = student.flow_map(x, times(time), times(0.0), None, None).detach()
        x = (1 - next_time) * x + next_time * draws().noise(f"renoise-{i}", (2,))
        torch.testing.assert_close(seen[i], x)
    torch.testing.assert_close(samples.x, x)
    assert samples.num_evaluations == 3


def test_policy_students_take_few_steps_too():
    student = policy_student((2,), width=8, depth=1, num_components=2, num_substeps=4)
    samples = few_step().sample(student, noise(), uniform_grid(2), None, unguided())
    middle = student.flow_map(noise(), times(1.0), times(0.5), None, None)
    torch.testing.assert_close(samples.x, student.flow_map(middle, times(0.5), times(0.0), None, None).detach())


def test_renoising_keeps_the_distribution():
    n = 20_000
    grid = uniform_grid(4)
    x = few_step(renoise=True).sample(GaussianStudent(MEAN, STD), noise(n), grid, None, unguided(n), draws(n)).x
    torch.testing.assert_close(x.mean(0), MEAN, rtol=0, atol=0.06)
    torch.testing.assert_close(x.std(0), STD, rtol=0.03, atol=0)


def test_renoising_needs_draws():
    with pytest.raises(ConfigError, match="renoise=false"):
        few_step(renoise=True).sample(GaussianStudent(MEAN, STD), noise(), uniform_grid(2), None, unguided())


@pytest.mark.parametrize(("then", "per_step"), [("euler", 1), ("heun", 2)])
def test_hybrid_is_one_exact_jump_and_then_the_teacher(then, per_step):
    teacher, seen = GaussianTeacher(MEAN, STD), []
    grid = jump_grid(0.5, 400)
    pair, note = (prior_student(), teacher), lambda i, t, x: seen.append((i, float(t), x))
    samples = hybrid(then=then).sample(pair, noise(), grid, None, unguided(), on_step=note)
    torch.testing.assert_close(seen[0][2], teacher.exact_flow_map(noise(), times(1.0), times(0.5)), rtol=0, atol=1e-13)
    assert [(i, t) for i, t, _ in seen] == list(enumerate(grid[1:].tolist()))
    accuracy = 2e-2 if then == "euler" else 1e-4
    error = (samples.x - teacher.exact_flow_map(noise(), times(1.0), times(0.0))).abs().max()
    assert error < accuracy
    if then == "euler":
        assert error > 1e-4  # it really was Euler
    assert samples.num_evaluations == 1 + 400 * per_step


def test_hybrid_guides_the_teacher_and_tells_the_student_the_weight():
    teacher = GaussianMixtureTeacher(
        torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), stds=torch.tensor([0.6, 0.9]), labels=torch.tensor([0, 1])
    )
    student = MLPStudent(MLPStudentConfig(sample_shape=(2,), num_classes=2, width=16)).double()
    label, guidance = torch.arange(N) % 2, Guidance(torch.linspace(1, 3, N, dtype=F64), 0.0, 0.7)
    grid = jump_grid(0.5, 200)
    samples = hybrid().sample((student, teacher), noise(), grid, label, guidance)
    with torch.no_grad():
        middle = student.flow_map(noise(), times(1.0), times(0.5), label, guidance.weight)
    exact = teacher.reference_flow_map(middle, times(0.5), times(0.0), label, guidance)
    torch.testing.assert_close(samples.x, exact, rtol=1e-4, atol=1e-4)
    assert samples.num_evaluations == pytest.approx(1 + 400 * (1 + (N - 1) / N))
    shorter = hybrid(final_euler=True).sample((student, teacher), noise(), grid, label, guidance)
    assert shorter.num_evaluations == pytest.approx(samples.num_evaluations - 1 - (N - 1) / N)


def test_hybrid_needs_a_teacher_step_and_starts_at_noise():
    pair = (prior_student(), GaussianTeacher(MEAN, STD))
    with pytest.raises(ConfigError, match="at least two steps"):
        hybrid().sample(pair, noise(), uniform_grid(1), None, unguided())
    with pytest.raises(ConfigError, match="jump from t = 1 only"):
        hybrid().sample(pair, noise(), torch.tensor([0.9, 0.5, 0.0], dtype=F64), None, unguided())


def test_students_run_in_their_own_precision():
    config = MLPStudentConfig(sample_shape=(2,))
    student = MLPStudent.from_config(config, CONTEXT)
    samples = one_step().sample(student, noise(), uniform_grid(1), None, unguided())
    assert samples.x.dtype is F64
    again = one_step().sample(student, noise().float(), uniform_grid(1), None, unguided())
    torch.testing.assert_close(samples.x.float(), again.x, rtol=0, atol=0)


def test_students_get_times_like_their_states():
    class Concatenating(GaussianStudent):
        def forward(self, x_t, t, s, condition, guidance):
            assert torch.cat([x_t, t[:, None], s[:, None]], 1).dtype is x_t.dtype is torch.float32
            return super().forward(x_t, t, s, condition, guidance)

    student = Concatenating(MEAN.float(), STD.float())
    for sampler in (few_step(), few_step(renoise=True)):
        assert sampler.sample(student, noise(), uniform_grid(2), None, unguided(), draws()).x.dtype is F64


def test_shifted_grids():
    grid = few_step(shift=3.0).default_grid(4)
    torch.testing.assert_close(grid, torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0], dtype=F64))
    assert (hybrid(shift=0.5).default_grid(4)[1:-1] < uniform_grid(4)[1:-1]).all()
    with pytest.raises(ValueError, match="greater than 0"):
        FewStepConfig(shift=0)
