"""One joined step: rows, passes, isolation, and independence of how the batch is cut."""

import copy

import pytest
import torch
from freeflow_predictor_corrector.config import CorrectionConfig, FreeFlowConfig, PredictionConfig
from freeflow_predictor_corrector.freeflow import FreeFlow, FreeFlowCorrection, FreeFlowPrediction
from objective_helpers import Spy
from predictor_corrector_helpers import NO_DATA, ClassTeacher, SmallStudent, losses, models, philox, progress
from torch import Tensor

from freeflow_core.config import OptimizerConfig
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import AverageVelocityStudent, Context, Model, Models, StartTimes
from freeflow_core.math.random import PhiloxDraws


@pytest.mark.parametrize(("derivative", "rows"), [("one-sided", 12), ("central", 24)])
def test_passes_of_one_step(derivative, rows):
    teacher, student = ClassTeacher(), SmallStudent()
    wrapped, bare = Spy(student), Spy(student)
    fake = copy.deepcopy(student)
    fake_wrapped, fake_bare = Spy(fake), Spy(fake)

    def rows_of(spy):
        return [len(call[0]) for call in spy.calls]

    networks = Models({"student": Model(wrapped, bare), "fake_velocity": Model(fake_wrapped, fake_bare)}, teacher)
    config = FreeFlowConfig(
        derivative=derivative, derivative_step=1e-4, guidance_min=2, guidance_max=3, guidance_interval=(0.3, 0.7)
    )
    losses(FreeFlow(config), networks, philox(16))
    assert (rows_of(wrapped), wrapped.gradient) == ([16], [True])
    assert (rows_of(bare), bare.gradient) == ([rows], [False])
    assert (rows_of(fake_wrapped), fake_wrapped.gradient) == ([4], [True])
    assert fake_bare.calls == []
    guided = int((teacher.weights[0] != 1).sum())
    assert 0 < guided < 16
    assert len(teacher.weights) == 1
    assert teacher.rows_of_calls == [16 + guided]


def test_predictor_and_corrector_resolve_their_own_guidance():
    teacher, student, draws = ClassTeacher(), SmallStudent(), philox(64)
    config = FreeFlowConfig(
        guidance_min=3,
        guidance_max=3,
        guidance_interval=(0.2, 1.0),
        correction_guidance_scale=0.5,
        correction_guidance_interval=(0.7, 1.0),
    )
    losses(FreeFlow(config), models(student, teacher, copy.deepcopy(student)), draws)
    weight, t = teacher.weights[0], teacher.times[0]
    assert torch.equal(weight[:48], torch.where(t[:48] >= 0.2, 3.0, 1.0).double())
    assert torch.equal(weight[48:], torch.where(t[48:] >= 0.7, 2.0, 1.0).double())
    outside, _ = draws.split(0.25)
    torch.testing.assert_close(t[:48], draws.uniform("duration")[outside])


def test_losses_stay_apart():
    teacher, student = ClassTeacher(), SmallStudent(seed=1)
    fake = SmallStudent(seed=2)
    result = losses(FreeFlow(FreeFlowConfig(guidance_max=3)), models(student, teacher, fake), philox(16))
    assert result["student"].per_sample.shape == (16,)
    assert result["fake_velocity"].per_sample.shape == (4,)
    result["student"].per_sample.mean().backward()
    assert all(p.grad is None for p in fake.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in student.parameters())
    student.zero_grad(set_to_none=True)
    result["fake_velocity"].per_sample.mean().backward()
    assert all(p.grad is None for p in student.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in fake.parameters())
    assert teacher.std.grad is None


class _Collecting(Context):
    def __init__(self) -> None:
        self.means: list[Tensor] = []

    def mean(self, values: Tensor) -> Tensor:
        self.means.append(values.detach().mean())
        return self.means[-1]


class _Replaying(Context):
    def __init__(self, collected: list[list[Tensor]]) -> None:
        self.means = list(torch.stack([torch.stack(means) for means in collected]).mean(0))

    def mean(self, values: Tensor) -> Tensor:
        return self.means.pop(0)


@pytest.mark.parametrize("mode", ["raw", "weighted"])
def test_two_micro_batches_give_the_same_rows_as_one(mode):
    teacher, student, fake = ClassTeacher(), SmallStudent(seed=1), SmallStudent(seed=2)
    networks = models(student, teacher, fake)
    objective = FreeFlow(FreeFlowConfig(balance=mode, guidance_max=3.0))
    whole = losses(objective, networks, philox(8))
    index = torch.arange(8)
    halves = [
        PhiloxDraws(3, index[part], position=index[part], batch_size=8, dtype=torch.float64)
        for part in (slice(0, 4), slice(4, 8))
    ]
    collected = []
    for half in halves:
        context = _Collecting()
        with torch.no_grad():
            objective.losses(networks, NO_DATA, half, progress(), context)
        collected.append(context.means)

    def pieces():
        return [objective.losses(networks, NO_DATA, half, progress(), _Replaying(collected)) for half in halves]

    parts = pieces()
    assert [len(part["student"].per_sample) for part in parts] == [4, 4]
    joined = torch.cat([p["student"].per_sample[:3] for p in parts] + [p["student"].per_sample[3:] for p in parts])
    torch.testing.assert_close(whole["student"].per_sample, joined, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        whole["fake_velocity"].per_sample, torch.cat([p["fake_velocity"].per_sample for p in parts])
    )
    torch.testing.assert_close(whole["student"].terms["balance"], parts[0]["student"].terms["balance"])
    assert collected[0][0] != collected[1][0]  # the local means differ: without the global one this would fail


def test_a_batch_without_correction_rows_is_refused():
    teacher, student = ClassTeacher(), SmallStudent()
    with pytest.raises(ConfigError, match=r"batch of 2 rows .*correction_share=0.25"):
        losses(FreeFlow(FreeFlowConfig()), models(student, teacher, copy.deepcopy(student)), philox(2))


def test_joint_step_is_prediction_on_its_rows_and_correction_on_its_own():
    teacher, student, fake = ClassTeacher(), SmallStudent(seed=1), SmallStudent(seed=2)
    networks, draws = models(student, teacher, fake), philox(16)
    options = {"guidance_max": 3.0}
    whole = losses(FreeFlow(FreeFlowConfig(**options)), networks, draws)
    ahead = losses(FreeFlowPrediction(PredictionConfig(**options)), networks, draws)
    back = losses(FreeFlowCorrection(CorrectionConfig(**options)), networks, draws)
    first, last = draws.split(0.25)
    torch.testing.assert_close(whole["student"].per_sample[:12], ahead["student"].per_sample[first])
    factor = whole["student"].terms["balance"]
    torch.testing.assert_close(whole["student"].per_sample[12:], factor * back["student"].per_sample[last])
    torch.testing.assert_close(whole["fake_velocity"].per_sample, back["fake_velocity"].per_sample[last])


def test_roles_and_class_facts():
    student, teacher = SmallStudent(), ClassTeacher()
    optimizer = OptimizerConfig(learning_rate=3e-4)
    objective = FreeFlow(FreeFlowConfig(fake_velocity_optimizer=optimizer))
    role = objective.roles(student, teacher)["fake_velocity"]
    assert (role.trainable, role.ema, role.optimizer) == (True, False, optimizer)
    assert role.network is not student
    ours, theirs = dict(student.named_parameters()), dict(role.network.named_parameters())
    for name, value in ours.items():
        assert torch.equal(value, theirs[name])
        assert value.data_ptr() != theirs[name].data_ptr()
    assert FreeFlowPrediction(PredictionConfig()).roles(student, teacher) == {}
    assert FreeFlowCorrection(CorrectionConfig()).roles(student, teacher)["fake_velocity"].optimizer is None
    for kind in (FreeFlow, FreeFlowPrediction, FreeFlowCorrection):
        assert (kind.needs_data, kind.needs_teacher) == (False, True)
        assert kind.requires is AverageVelocityStudent
        assert kind.start_times is StartTimes.PRIOR
    assert not FreeFlowPrediction(PredictionConfig()).uses_batch_means
    assert not FreeFlowCorrection(CorrectionConfig()).uses_batch_means
