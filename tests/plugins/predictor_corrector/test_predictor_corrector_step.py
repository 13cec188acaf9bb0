"""One joined step: rows, passes, isolation, and independence of how the batch is cut."""

import copy

import pytest
import torch
from exact_maps import ClassTeacher, small_student
from freeflow_predictor_corrector.config import CorrectionConfig, FreeFlowConfig, PredictionConfig
from freeflow_predictor_corrector.freeflow import FreeFlow, FreeFlowCorrection, FreeFlowPrediction
from objective_helpers import Spy, models, philox, spied, step

from freeflow_core.config import OptimizerConfig
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import Model, Models, StartTimes


@pytest.mark.parametrize(("derivative", "rows"), [("one-sided", 12), ("central", 24)])
def test_passes_of_one_step(derivative, rows):
    teacher, student = ClassTeacher(dims=2), small_student()
    fake = copy.deepcopy(student)
    fake_wrapped, fake_bare = Spy(fake), Spy(fake)

    def rows_of(spy):
        return [len(call[0]) for call in spy.calls]

    networks, wrapped, bare = spied(teacher, student)
    networks = Models({**networks, "fake_velocity": Model(fake_wrapped, fake_bare)}, teacher)
    config = FreeFlowConfig(
        derivative=derivative, derivative_step=1e-4, guidance_min=2, guidance_max=3, guidance_interval=(0.3, 0.7)
    )
    step(FreeFlow(config), networks, philox(16))
    assert (rows_of(wrapped), wrapped.gradient) == ([16], [True])
    assert (rows_of(bare), bare.gradient) == ([rows], [False])
    assert (rows_of(fake_wrapped), fake_wrapped.gradient) == ([4], [True])
    assert fake_bare.calls == []
    ((_, weight),) = teacher.asked
    guided = int((weight != 1).sum())
    assert 0 < guided < 16
    assert teacher.calls == [16 + guided]


def test_predictor_and_corrector_resolve_their_own_guidance():
    teacher, student, draws = ClassTeacher(dims=2), small_student(), philox(64)
    config = FreeFlowConfig(
        guidance_min=3,
        guidance_max=3,
        guidance_interval=(0.2, 1.0),
        correction_guidance_scale=0.5,
        correction_guidance_interval=(0.7, 1.0),
    )
    step(FreeFlow(config), models(student, teacher, fake_velocity=copy.deepcopy(student)), draws)
    ((t, weight),) = teacher.asked
    assert torch.equal(weight[:48], torch.where(t[:48] >= 0.2, 3.0, 1.0).double())
    assert torch.equal(weight[48:], torch.where(t[48:] >= 0.7, 2.0, 1.0).double())
    outside, _ = draws.split(0.25)
    torch.testing.assert_close(t[:48], draws.uniform("duration")[outside])


def test_a_batch_without_correction_rows_is_refused():
    teacher, student = ClassTeacher(dims=2), small_student()
    with pytest.raises(ConfigError, match=r"batch of 2 rows .*correction_share=0.25"):
        step(FreeFlow(FreeFlowConfig()), models(student, teacher, fake_velocity=copy.deepcopy(student)), philox(2))


def test_joint_step_is_prediction_on_its_rows_and_correction_on_its_own():
    teacher, student, fake = ClassTeacher(dims=2), small_student(1), small_student(2)
    networks, draws = models(student, teacher, fake_velocity=fake), philox(16)
    options = {"guidance_max": 3.0}
    whole = step(FreeFlow(FreeFlowConfig(balance="weighted", **options)), networks, draws)
    ahead = step(FreeFlowPrediction(PredictionConfig(**options)), networks, draws)
    back = step(FreeFlowCorrection(CorrectionConfig(**options)), networks, draws)
    first, last = draws.split(0.25)
    torch.testing.assert_close(whole["student"].per_sample[:12], ahead["student"].per_sample[first])
    factor = whole["student"].terms["balance"]
    torch.testing.assert_close(whole["student"].per_sample[12:], factor * back["student"].per_sample[last])
    torch.testing.assert_close(whole["fake_velocity"].per_sample, back["fake_velocity"].per_sample[last])


def test_the_fake_velocity_starts_as_the_student_with_its_own_optimizer():
    student, optimizer = small_student(), OptimizerConfig(learning_rate=3e-4)
    role = FreeFlow(FreeFlowConfig(fake_velocity_optimizer=optimizer)).roles(student, ClassTeacher())["fake_velocity"]
    assert (role.trainable, role.ema, role.optimizer) == (True, False, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(role.network.parameters(), student.parameters(), strict=True))
    assert FreeFlowPrediction(PredictionConfig()).roles(student, ClassTeacher()) == {}
    for kind in (FreeFlow, FreeFlowPrediction, FreeFlowCorrection):
        assert (kind.needs_data, kind.needs_teacher, kind.start_times) == (False, True, StartTimes.PRIOR)
