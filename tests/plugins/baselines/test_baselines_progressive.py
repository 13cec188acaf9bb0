"""Progressive distillation: two half steps in closed form, rounds that follow each other, and a resumed run."""

import pytest
import torch
from exact_maps import MEAN, STD, PlainStudent, gaussian_data, teacher_and_student
from freeflow_baselines.config import ProgressiveConfig
from freeflow_baselines.progressive import PREVIOUS, Progressive, round_bounds
from objective_helpers import TeacherSpy, philox, progress, spied, step
from run_helpers import TINY
from torch import nn

from freeflow_core import api
from freeflow_core.config import load_run_config
from freeflow_core.errors import ConfigError
from freeflow_core.math.flow import average_velocity_jump, mean_square
from freeflow_core.testing.exact import GaussianStudent, GaussianTeacher
from freeflow_core.types import Batch


def objective(**options):
    return Progressive(ProgressiveConfig(**options))


def in_round(progressive, number):
    progressive.load_state_dict({"round": torch.tensor(number)})
    return progressive


def data(num, start=0):
    return Batch(gaussian_data(num, start), None)


class TwoEulerSteps(PlainStudent):
    """The average velocity of two Euler half steps of a teacher, times ``scale`` (trainable)."""

    def __init__(self, teacher):
        super().__init__()
        self.teacher = teacher
        self.sample_shape = teacher.sample_shape
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x_t, t, s, condition, guidance):
        middle = (t + s) / 2
        first = self.teacher.velocity(x_t, t, None)
        second = self.teacher.velocity(average_velocity_jump(x_t, first, t, middle), middle, None)
        return self.scale * (first + second) / 2


@pytest.mark.parametrize("states", ["data", "prior"])
def test_first_round_two_half_steps_of_the_teacher_are_stationary_and_a_wrong_sign_is_not(states):
    teacher = GaussianTeacher(MEAN, STD)
    for sign in (1.0, -1.0):
        student = TwoEulerSteps(teacher)
        models, _, _ = spied(TeacherSpy(teacher, sign), student, **{PREVIOUS: GaussianStudent(MEAN, STD)})
        batch = data(500) if states == "data" else Batch(None, None)
        loss = step(objective(states=states), models, philox(500), batch)["student"]
        loss.per_sample.mean().backward()
        if sign == 1:
            assert loss.per_sample.max() < 1e-24
            assert abs(float(student.scale.grad)) < 1e-12
        else:
            assert loss.per_sample.mean() > 0.1
            assert abs(float(student.scale.grad)) > 0.1


@pytest.mark.parametrize("number", [1, 4])
def test_later_rounds_the_exact_map_is_stationary_and_a_wrong_sign_is_not(number):
    teacher, student = teacher_and_student()
    for previous in (GaussianStudent(MEAN, STD), GaussianStudent(-MEAN, STD)):
        spy = TeacherSpy(teacher)
        models, _, _ = spied(spy, student, **{PREVIOUS: previous})
        loss = step(in_round(objective(), number), models, philox(500), data(500))["student"]
        student.zero_grad()
        loss.per_sample.mean().backward()
        gradient = max(float(p.grad.abs().max()) for p in student.parameters() if p.grad is not None)
        assert spy.calls == []  # only the first round asks the teacher
        assert all(p.grad is None for p in previous.parameters())
        if torch.equal(previous.mean, MEAN):
            assert loss.per_sample.max() < 1e-24
            assert gradient < 1e-12
        else:
            assert loss.per_sample.mean() > 0.1
            assert gradient > 0.1


def test_weight_is_the_truncated_ratio_of_signal_to_noise():
    teacher, student = teacher_and_student(std=1.2 * STD)
    models, wrapped, _ = spied(teacher, student, **{PREVIOUS: student})
    loss = step(objective(start_steps=8), models, philox(200), data(200))["student"]
    x_t, t, s, condition, guidance = wrapped.calls[0]
    u, target = student(x_t, t, s, condition, guidance), TwoEulerSteps(teacher)(x_t, t, s, None, None)
    ratio = ((1 - t) / t).square().clamp_min(1)  # max(SNR, 1) of the implied data points x_t - t u
    torch.testing.assert_close(loss.per_sample, ratio * mean_square(t[:, None] * (u - target)))


@pytest.mark.parametrize("number", [0, 2])
def test_times_are_those_of_the_rounds_grid_alone(number):
    teacher, student = teacher_and_student()
    models, wrapped, _ = spied(teacher, student, **{PREVIOUS: GaussianStudent(MEAN, STD)})
    step(in_round(objective(start_steps=16), number), models, philox(2000), data(2000))
    steps = 16 >> number
    x_t, t, s = wrapped.calls[0][:3]
    torch.testing.assert_close(t - s, torch.full_like(t, 1 / steps))
    places, counts = (t * steps).round().unique(return_counts=True)
    assert torch.equal(places, torch.arange(1, steps + 1).double())
    assert counts.min() > 0.6 * 2000 / steps
    noise = philox(2000).noise("noise", (3,))
    torch.testing.assert_close(x_t, (1 - t[:, None]) * gaussian_data(2000) + t[:, None] * noise)


def test_without_data_states_lie_on_the_students_own_path():
    teacher, student = teacher_and_student(std=1.2 * STD)
    models, wrapped, bare = spied(teacher, student, **{PREVIOUS: GaussianStudent(MEAN, STD)})
    step(objective(start_steps=4, states="prior"), models, philox(64))
    x_t, t = wrapped.calls[0][:2]
    x, one = philox(64).noise("prior", (3,)), torch.ones(64, dtype=torch.float64)
    for k in (4, 3, 2, 1):
        rows = (t * 4).round() == k
        torch.testing.assert_close(x_t[rows], x[rows])
        x = student.flow_map(x, one * k / 4, one * (k - 1) / 4, None, None)
    assert not any(bare.gradient)
    assert sum(len(call[0]) for call in bare.calls) == int((4 - (t * 4).round()).sum())  # no row is moved in vain


def test_rounds_follow_each_other_and_survive_a_restart():
    progressive = objective(start_steps=8)  # four rounds of 250 images
    seen = []
    for images in range(0, 1000, 50):
        (*changes,) = progressive.transitions(progress(images=images))
        if changes:
            (change,) = changes
            assert (change.copy_from, change.copy_to) == ("student", PREVIOUS)
            assert (change.reset_optimizer, change.reset_ema) == (("student",), ("student",))
            assert progressive.transitions(progress(images=images)) == ()
            again = objective(start_steps=8)
            again.load_state_dict(progressive.state_dict())
            assert again.num_steps == progressive.num_steps
            assert again.transitions(progress(images=images)) == ()
        seen.append(progressive.num_steps)
        assert progressive.schedule_span(progress(images=images)) == (images // 250 * 250, (images // 250 + 1) * 250)
    assert seen == [8] * 5 + [4] * 5 + [2] * 5 + [1] * 5


def test_no_round_is_skipped_however_short():
    progressive = objective(start_steps=4, round_images=(1, 1, 1))
    assert progressive.transitions(progress(images=0)) == ()
    for steps in (2, 1):
        assert len(progressive.transitions(progress(images=500))) == 1
        assert progressive.num_steps == steps
    assert progressive.transitions(progress(images=500)) == ()


def test_lengths_of_rounds():
    assert round_bounds(ProgressiveConfig(start_steps=8), 1000) == [0, 250, 500, 750, 1000]
    assert round_bounds(ProgressiveConfig(start_steps=4, final_steps=2), 1000) == [0, 500, 1000]
    config = ProgressiveConfig(start_steps=4, round_images=(100, 200, 300))
    assert round_bounds(config, 1000) == [0, 100, 300, 1000]
    with pytest.raises(ConfigError, match="begin at image 300, but the run ends at image 300"):
        round_bounds(config, 300)
    with pytest.raises(ConfigError, match=r"lengthen training\.images"):
        objective(start_steps=4, round_images=(100, 200, 300)).transitions(progress(total=300))


def run(registry, manager, output, *assignments, resume=False):
    settings = TINY | {
        "objective": {"name": "progressive", "states": "prior", "start_steps": 4},
        "training": {"images": 240, "batch_size": 16, "optimizer": {"learning_rate": 1e-2}},
    }
    config = load_run_config(registry, "distill", overrides=settings, assignments=assignments)
    return api.distill(config, output=output, resume=resume, manager=manager)


def test_a_run_resumed_in_any_round_ends_as_one_that_was_not_stopped(registry, manager, tmp_path):
    whole = run(registry, manager, tmp_path / "whole")
    expected = api.load_student(whole.folder, manager=manager).student.state_dict()
    for stop in (64, 80, 176):  # within the first round, at its end, in the last
        folder = tmp_path / f"stopped-{stop}"
        run(registry, manager, folder, f"training.stop_at_images={stop}")
        result = run(registry, manager, folder, resume=True)
        found = api.load_student(result.folder, manager=manager).student.state_dict()
        for name, tensor in expected.items():
            assert torch.equal(tensor, found[name]), f"{name} after stopping at {stop}"
