"""Flow matching against Gaussian data, whose velocity, loss floor and gradient are known in closed form."""

import math

import pytest
import torch
from exact_maps import MEAN, STD, gaussian_data
from freeflow_baselines.config import FlowMatchingConfig
from freeflow_baselines.flow_matching import FlowMatching
from objective_helpers import philox, spied, step

from freeflow_core.math.flow import logit_normal
from freeflow_core.testing.exact import GaussianStudent
from freeflow_core.types import Batch


def train(student, x, condition=None, start=0, **options):
    """The student's loss, and what its wrapped network was asked."""
    models, wrapped, _ = spied(None, student)
    objective = FlowMatching(FlowMatchingConfig(**options))
    loss = step(objective, models, philox(len(x), start), Batch(x, condition))["student"]
    (call,) = wrapped.calls
    assert wrapped.gradient == [True]
    return loss, call


def labelled(num_classes):
    student = GaussianStudent(MEAN, STD)
    student.num_classes = num_classes
    return student


def test_one_point_of_data_is_matched_in_every_sample():
    # With x = m alone, (x_t - m) / t = n - m whatever the noise: the exact velocity leaves no residual at all.
    point = torch.full_like(STD, 1e-12)
    loss, _ = train(GaussianStudent(MEAN, point), gaussian_data(500, std=point))
    assert loss.per_sample.max() < 1e-18


def test_loss_of_the_exact_velocity_is_the_variance_that_x_t_leaves_open():
    # Var[n - x | x_t] = c^2 / ((1 - t)^2 c^2 + t^2), and its integral over t in (0, 1) is c pi / 2.
    loss, _ = train(GaussianStudent(MEAN, STD), gaussian_data(20_000))
    floor, error = float(STD.mean()) * math.pi / 2, float(loss.per_sample.detach().std()) / math.sqrt(20_000)
    assert error < 0.01 * floor
    assert abs(float(loss.per_sample.detach().mean()) - floor) < 4 * error


@pytest.mark.parametrize("options", [{}, {"time_distribution": "logit-normal", "time_location": 0.5}])
def test_gradient_vanishes_at_the_exact_velocity_and_only_there(options):
    def gradients(factor, shift):
        """Of the scale and of the mean, in standard errors over 20 batches."""
        found = []
        for number in range(20):
            student = GaussianStudent(MEAN + shift, factor * STD)
            loss, _ = train(student, gaussian_data(1000, 1000 * number), start=1000 * number, **options)
            std, mean = torch.autograd.grad(loss.per_sample.mean(), [student.std, student.mean])
            found.append(torch.stack([(std * STD).sum(), mean.sum()]))
        each = torch.stack(found)
        scale, mean = each.mean(0) / (each.std(0) / math.sqrt(len(each)))
        return scale, mean

    assert max(abs(float(found)) for found in gradients(1.0, 0.0)) < 4
    assert gradients(0.9, 0.0)[0] < -10
    assert gradients(1.1, 0.0)[0] > 10
    assert gradients(1.0, -0.1)[1] < -10
    assert gradients(1.0, 0.1)[1] > 10


def test_one_gradient_pass_at_s_equal_t_on_the_straight_line_to_the_noise():
    student = GaussianStudent(MEAN, 1.2 * STD)
    loss, (x_t, t, s, condition, guidance) = train(student, gaussian_data(16))
    assert torch.equal(t, s)
    assert torch.equal(t, philox(16).uniform("time"))
    assert condition is None
    assert guidance is None
    noise = philox(16).noise("noise", (3,))
    torch.testing.assert_close(x_t, (1 - t[:, None]) * gaussian_data(16) + t[:, None] * noise)
    v = student(x_t, t, t, None, None)
    torch.testing.assert_close(loss.per_sample, (v - (noise - gaussian_data(16))).square().mean(1))
    torch.testing.assert_close(loss.terms["velocity_mean_square"], v.detach().square().mean())


def test_times_follow_the_configured_distribution():
    options = {"time_distribution": "logit-normal", "time_location": 0.8, "time_scale": 0.5}
    _, (_, t, *_) = train(GaussianStudent(MEAN, STD), gaussian_data(64), **options)
    assert torch.equal(t, logit_normal(philox(64).uniform("time"), 0.8, 0.5))


def test_share_of_labels_dropped_to_the_row_after_the_last_class():
    num, share, num_classes = 4000, 0.1, 7
    labels = torch.arange(num) % num_classes
    before = labels.clone()
    _, (_, t, _, seen, _) = train(labelled(num_classes), gaussian_data(num), labels, label_dropout=share)
    dropped = seen == num_classes
    assert torch.equal(seen[~dropped], labels[~dropped])
    assert abs(int(dropped.sum()) - share * num) < 4 * math.sqrt(num * share * (1 - share))
    per_class = torch.bincount(labels[dropped], minlength=num_classes)
    assert per_class.min() > 0.5 * per_class.max()  # whichever the class
    assert abs(float(t[dropped].mean() - 0.5)) < 0.06  # and the time
    assert torch.equal(labels, before)  # the source's own tensor is left alone
