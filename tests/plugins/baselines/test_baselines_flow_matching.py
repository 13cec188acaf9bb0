"""Flow matching against Gaussian data, whose velocity, loss floor and gradient are known in closed form."""

from __future__ import annotations

import math
from typing import Any, Self, final

import pytest
import torch
from freeflow_baselines.config import FlowMatchingConfig
from freeflow_baselines.flow_matching import FlowMatching
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from freeflow_core.config import ComponentConfig
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import AverageVelocityStudent, BuildContext, Context, Model, Models, StartTimes
from freeflow_core.math.flow import expand_times, logit_normal
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.types import Batch, Condition, Draws, LoadReport, Loss, NetworkState, Progress

MEAN, SPREAD, DIM = 0.7, 0.5, 3
PROGRESS = Progress(images=0, step=0, total_images=1)


class NoMeans(Context):
    def mean(self, values: Tensor) -> Tensor:
        raise AssertionError("flow matching uses no batch means")


@final
class GaussianStudent(AverageVelocityStudent):
    """u = scale * v + shift, where v is the exact velocity for data N(mean, spread^2) in every dimension.

    With x_t = (1 - t) x + t n: E[n - x | x_t] = -m + (t - (1 - t) c^2) / ((1 - t)^2 c^2 + t^2) (x_t - (1 - t) m).
    """

    def __init__(
        self, spread: float = SPREAD, scale: float = 1.0, num_classes: int | None = None, dtype: Any = torch.float64
    ) -> None:
        super().__init__()
        self.spread = spread
        self.num_classes = num_classes
        self.sample_shape = (DIM,)
        self.scale = nn.Parameter(torch.tensor(scale, dtype=dtype))
        self.shift = nn.Parameter(torch.zeros((), dtype=dtype))

    def exact(self, x_t: Tensor, t: Tensor) -> Tensor:
        time = expand_times(t, x_t)
        variance = ((1 - time) * self.spread).square() + time.square()
        return -MEAN + (time - (1 - time) * self.spread**2) / variance * (x_t - (1 - time) * MEAN)

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Tensor | None) -> Tensor:
        return self.scale * self.exact(x_t, t) + self.shift

    def average_velocity(self, output: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return output

    def jump(self, output: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return x_t - expand_times(t - s, x_t) * output

    def load_teacher(self, teacher: object) -> LoadReport:
        raise NotImplementedError

    def network_state(self) -> NetworkState:
        raise NotImplementedError

    @classmethod
    def from_state(cls, state: NetworkState) -> Self:
        raise NotImplementedError

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        raise NotImplementedError


class Recorder(nn.Module):
    """Stands for a distributed wrapper: the only way a gradient pass may reach the network."""

    def __init__(self, student: AverageVelocityStudent) -> None:
        super().__init__()
        self.student = student
        self.calls: list[tuple[Tensor, Tensor, Tensor, Condition, Tensor | None]] = []

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Tensor | None) -> Tensor:
        self.calls.append((x_t, t, s, condition, guidance))
        return self.student(x_t, t, s, condition, guidance)


def objective(**options: Any) -> FlowMatching:
    context = BuildContext(device=torch.device("cpu"), seed=0, component=lambda *_: None)
    return FlowMatching.from_config(FlowMatchingConfig(**options), context)


def draws_for(num: int, start: int = 0, dtype: torch.dtype = torch.float64) -> PhiloxDraws:
    return PhiloxDraws(11, torch.arange(start, start + num), dtype=dtype)


def gaussian_data(num: int, spread: float = SPREAD, start: int = 0) -> Tensor:
    data = PhiloxDraws(12, torch.arange(start, start + num), dtype=torch.float64)
    return MEAN + spread * data.noise("data", (DIM,))


def step(
    student: AverageVelocityStudent, x: Tensor | None, draws: Draws, condition: Condition = None, **options: Any
) -> tuple[Loss, Recorder]:
    recorder = Recorder(student)
    models = Models({"student": Model(recorder, student)}, None)
    losses = objective(**options).losses(models, Batch(x, condition), draws, PROGRESS, NoMeans())
    assert losses.keys() == {"student"}
    return losses["student"], recorder


def labels_seen(recorder: Recorder) -> Tensor:
    condition = recorder.calls[0][3]
    assert isinstance(condition, Tensor)
    return condition


def test_contract() -> None:
    assert FlowMatching.needs_data
    assert not FlowMatching.needs_teacher
    assert not FlowMatching.uses_batch_means
    assert FlowMatching.requires is AverageVelocityStudent
    assert FlowMatching.start_times is StartTimes.ANY
    assert objective().roles(GaussianStudent(), None) == {}


def test_one_point_of_data_is_matched_in_every_sample() -> None:
    # With x = m alone, (x_t - m) / t = n - m whatever the noise: the exact velocity leaves no residual at all.
    loss, _ = step(GaussianStudent(spread=0.0), gaussian_data(500, spread=0.0), draws_for(500))
    assert loss.per_sample.max() < 1e-18


@pytest.mark.parametrize("spread", [0.5, 1.0, 1.6])
def test_loss_of_the_exact_velocity_is_the_variance_that_x_t_leaves_open(spread: float) -> None:
    # Var[n - x | x_t] = c^2 / ((1 - t)^2 c^2 + t^2), and its integral over t in (0, 1) is c pi / 2.
    loss, _ = step(GaussianStudent(spread=spread), gaussian_data(40_000, spread), draws_for(40_000))
    error = float(loss.per_sample.detach().std()) / math.sqrt(40_000)
    assert error < 0.01 * spread * math.pi / 2
    assert abs(float(loss.per_sample.detach().mean()) - spread * math.pi / 2) < 4 * error


@pytest.mark.parametrize("options", [{}, {"time_distribution": "logit-normal", "time_location": 0.5}])
def test_gradient_vanishes_at_the_exact_velocity_and_only_there(options: dict[str, Any]) -> None:
    num = 20_000

    def gradient_in_standard_errors(scale: float, shift: float) -> tuple[float, float]:
        student = GaussianStudent(scale=scale)
        with torch.no_grad():
            student.shift.fill_(shift)
        loss, recorder = step(student, gaussian_data(num), draws_for(num), **options)
        loss.per_sample.mean().backward()
        x_t, t = recorder.calls[0][:2]
        v = student.exact(x_t, t)
        with torch.no_grad():
            residual = student(x_t, t, t, None, None) - (draws_for(num).noise("noise", (DIM,)) - gaussian_data(num))
        found = []
        for parameter, direction in ((student.scale, v), (student.shift, torch.ones_like(v))):
            each = 2 * (residual * direction).mean(1)
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, each.mean())  # so that the standard error is its own
            found.append(float(parameter.grad / (each.std() / math.sqrt(num))))
        return found[0], found[1]

    at_solution = gradient_in_standard_errors(1.0, 0.0)
    assert max(map(abs, at_solution)) < 4
    assert gradient_in_standard_errors(0.9, 0.0)[0] < -10
    assert gradient_in_standard_errors(1.1, 0.0)[0] > 10
    assert gradient_in_standard_errors(1.0, -0.1)[1] < -10
    assert gradient_in_standard_errors(1.0, 0.1)[1] > 10


def test_loss_is_larger_with_the_sign_flipped() -> None:
    right, wrong = (
        step(GaussianStudent(scale=scale), gaussian_data(2000), draws_for(2000))[0].per_sample.mean()
        for scale in (1.0, -1.0)
    )
    assert wrong > right + 1


def test_one_gradient_pass_through_the_wrapper_at_s_equal_t() -> None:
    student = GaussianStudent()
    loss, recorder = step(student, gaussian_data(16), draws_for(16))
    ((x_t, t, s, condition, guidance),) = recorder.calls
    assert torch.equal(t, s)
    assert t.device.type == "cpu"
    assert condition is None
    assert guidance is None
    time = t[:, None]
    expected = (1 - time) * gaussian_data(16) + time * draws_for(16).noise("noise", (DIM,))
    torch.testing.assert_close(x_t, expected)
    loss.per_sample.sum().backward()
    assert student.scale.grad is not None


def test_per_sample_is_the_mean_over_dimensions_and_terms_are_detached_scalars() -> None:
    student = GaussianStudent()
    x = torch.randn(6, 2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loss, recorder = step(student, x, draws_for(6))
    x_t, t = recorder.calls[0][:2]
    v = student.exact(x_t, t)
    target = draws_for(6).noise("noise", (2, 4, 5)) - x
    torch.testing.assert_close(loss.per_sample, (v - target).square().mean((1, 2, 3)))
    assert loss.per_sample.shape == (6,)
    assert loss.per_sample.requires_grad
    torch.testing.assert_close(loss.terms["loss"], loss.per_sample.mean().detach())
    torch.testing.assert_close(loss.terms["velocity_mean_square"], v.square().mean())
    assert all(term.ndim == 0 and not term.requires_grad for term in loss.terms.values())


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8), st.integers(0, 1000), st.booleans())
def test_a_batch_is_the_sum_of_its_parts(first: int, start: int, logit: bool) -> None:
    student = GaussianStudent(num_classes=3)
    options = {"label_dropout": 0.5, "time_distribution": "logit-normal" if logit else "uniform"}
    labels = torch.arange(9) % 3
    x = gaussian_data(9, start=start)
    whole, whole_calls = step(student, x, draws_for(9, start), labels, **options)
    parts = [
        step(student, x[a:b], draws_for(b - a, start + a), labels[a:b], **options) for a, b in ((0, first), (first, 9))
    ]
    torch.testing.assert_close(whole.per_sample, torch.cat([loss.per_sample for loss, _ in parts]), rtol=1e-12, atol=0)
    assert torch.equal(labels_seen(whole_calls), torch.cat([labels_seen(calls) for _, calls in parts]))


def test_times_follow_the_configured_distribution() -> None:
    draws = draws_for(64)
    student, x = GaussianStudent(), gaussian_data(64)
    uniform = step(student, x, draws)[1].calls[0][1]
    assert torch.equal(uniform, draws.uniform("time"))
    options = {"time_distribution": "logit-normal", "time_location": 0.8, "time_scale": 0.5}
    logit = step(student, x, draws, **options)[1].calls[0][1]
    assert torch.equal(logit, logit_normal(draws.uniform("time"), 0.8, 0.5))


def test_share_of_labels_dropped_to_the_row_after_the_last_class() -> None:
    num, share, num_classes = 4000, 0.1, 7
    labels = torch.arange(num) % num_classes
    before = labels.clone()
    student = GaussianStudent(num_classes=num_classes)
    seen = labels_seen(step(student, gaussian_data(num), draws_for(num), labels, label_dropout=share)[1])
    dropped = seen == num_classes
    assert torch.equal(seen[~dropped], labels[~dropped])
    assert abs(int(dropped.sum()) - share * num) < 4 * math.sqrt(num * share * (1 - share))
    per_class = torch.bincount(labels[dropped], minlength=num_classes)
    assert per_class.min() > 0.5 * per_class.max()  # whichever the class
    assert torch.equal(labels, before)  # the source's own tensor is left alone


def test_dropout_does_not_follow_the_time() -> None:
    num = 4000
    student = GaussianStudent(num_classes=2)
    recorder = step(student, gaussian_data(num), draws_for(num), torch.zeros(num).long(), label_dropout=0.5)[1]
    t = recorder.calls[0][1]
    dropped = labels_seen(recorder) == 2
    # Means of two halves of 2000 uniform draws differ with a standard error of 0.009.
    assert abs(float(t[dropped].mean() - t[~dropped].mean())) < 0.04


@pytest.mark.parametrize(("share", "num_classes"), [(0.0, 3), (1.0, None)])
def test_labels_stay_without_dropout_or_without_classes(share: float, num_classes: int | None) -> None:
    labels = torch.arange(30) % 3
    student = GaussianStudent(num_classes=num_classes)
    seen = labels_seen(step(student, gaussian_data(30), draws_for(30), labels, label_dropout=share)[1])
    assert torch.equal(seen, labels)


def test_all_labels_can_be_dropped() -> None:
    student = GaussianStudent(num_classes=3)
    seen = labels_seen(step(student, gaussian_data(30), draws_for(30), torch.arange(30) % 3, label_dropout=1.0)[1])
    assert seen.tolist() == [3] * 30


def test_a_condition_that_is_no_label_cannot_be_dropped() -> None:
    student = GaussianStudent(num_classes=3)
    condition: Condition = {"text": torch.zeros(4, 5)}
    with pytest.raises(ConfigError, match=r"objective\.label_dropout=0"):
        step(student, gaussian_data(4), draws_for(4), condition)
    _, recorder = step(student, gaussian_data(4), draws_for(4), condition, label_dropout=0.0)
    assert recorder.calls[0][3] is condition


def test_a_source_without_data_is_refused() -> None:
    with pytest.raises(ConfigError, match="--source digits"):
        step(GaussianStudent(), None, draws_for(4))


@final
class LinearStudent(AverageVelocityStudent):
    """A matrix product, which autocast runs in bf16."""

    def __init__(self) -> None:
        super().__init__()
        self.sample_shape = (DIM,)
        self.layer = nn.Linear(DIM, DIM)

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Tensor | None) -> Tensor:
        return self.layer(x_t)

    def average_velocity(self, output: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        assert output.dtype is torch.bfloat16
        return output

    jump = GaussianStudent.jump
    load_teacher = GaussianStudent.load_teacher
    network_state = GaussianStudent.network_state
    from_state = GaussianStudent.from_state
    from_config = GaussianStudent.from_config


def test_loss_is_float32_under_bf16_autocast() -> None:
    draws = draws_for(8, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, recorder = step(LinearStudent(), gaussian_data(8).float(), draws)
    assert recorder.calls[0][0].dtype is torch.float32
    assert loss.per_sample.dtype is torch.float32
    assert all(term.dtype is torch.float32 for term in loss.terms.values())
    loss.per_sample.mean().backward()
    assert recorder.student.layer.weight.grad.dtype is torch.float32  # type: ignore[union-attr]


def test_states_take_the_precision_of_the_draws() -> None:
    loss, recorder = step(GaussianStudent(), gaussian_data(8).float(), draws_for(8, dtype=torch.float64))
    assert recorder.calls[0][0].dtype is torch.float64
    assert loss.per_sample.dtype is torch.float64


@pytest.mark.parametrize(
    "options",
    [{"label_dropout": 1.5}, {"label_dropout": -0.1}, {"time_scale": 0.0}, {"time_distribution": "cosine"}, {"x": 1}],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FlowMatchingConfig(**options)
