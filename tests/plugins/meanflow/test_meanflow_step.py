"""One MeanFlow step: who is asked what, by counts; weights, times, options, and independence of the split."""

import objective_helpers as helpers
import pytest
import torch
from exact_maps import ClassTeacher, RandomStudent
from freeflow_meanflow.config import ImprovedMeanFlowConfig, MeanFlowConfig
from freeflow_meanflow.improved import ImprovedMeanFlow
from freeflow_meanflow.meanflow import MeanFlow
from freeflow_meanflow.step import time_pairs
from objective_helpers import GivenDraws, build, losses, progress

from freeflow_core.errors import ConfigError
from freeflow_core.math.flow import logit_normal
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.types import Batch

ROWS = 64


def mean_flow(**options):
    return build(MeanFlow, MeanFlowConfig(**options))


def improved(**options):
    return build(ImprovedMeanFlow, ImprovedMeanFlowConfig(**options))


def spied(objective, teacher, rows=ROWS, **given):
    networks, wrapped, bare = helpers.spied(teacher, RandomStudent(num_classes=2))
    batch = Batch(*(teacher or ClassTeacher()).data(rows))
    return wrapped, bare, helpers.step(objective, networks, GivenDraws(rows, given), batch)["student"]


def test_one_gradient_pass_one_teacher_call_and_a_derivative_of_the_moving_rows_alone():
    teacher = ClassTeacher()
    wrapped, bare, loss = spied(
        mean_flow(guidance_min=2.0, guidance_max=2.0, derivative="central", instant_share=0.75), teacher
    )
    assert [len(call[0]) for call in wrapped.calls] == [ROWS]
    assert wrapped.gradient == [True]
    assert teacher.calls == [2 * ROWS]  # conditional and unconditional, at once
    assert not any(bare.gradient)
    edges = len(bare.calls[0][0]) - 2 * ROWS // 4  # 25 % of the rows move, at two points each
    assert len(bare.calls) == 1
    assert 0 <= edges <= ROWS // 4
    loss.per_sample.mean().backward()
    assert wrapped.network.first.grad is not None
    assert not any(p.requires_grad for p in teacher.parameters())
    guidance = wrapped.calls[0][4]
    assert torch.equal(guidance, torch.full((ROWS,), 2.0, dtype=torch.float64))


def test_share_of_instants_and_the_distribution_of_times():
    draws = PhiloxDraws(0, torch.arange(4000))
    t, s, moving = time_pairs(draws, MeanFlowConfig(velocity="data"))
    assert int((t == s).sum()) == 3000
    assert len(moving) == 1000
    assert (s[moving] < t[moving]).all()
    first = logit_normal(draws.uniform("time"), -0.4, 1.0)
    second = logit_normal(draws.uniform("end-time"), -0.4, 1.0)
    assert torch.equal(t, torch.maximum(first, second))
    assert torch.equal(s[moving], torch.minimum(first, second)[moving])
    t, s, moving = time_pairs(
        draws, MeanFlowConfig(instant_share=0.25, time_location=-0.6, time_scale=1.6, end_location=-4.0)
    )
    assert torch.equal(t, logit_normal(draws.uniform("time"), -0.6, 1.6))
    assert (s <= t).all()
    assert torch.equal(s[moving], logit_normal(draws.uniform("end-time"), -4.0, 1.6)[moving])
    assert len(time_pairs(draws, ImprovedMeanFlowConfig())[2]) == 2000
    assert len(time_pairs(draws, MeanFlowConfig())[2]) == 4000  # the teacher says what the instants are
    assert len(time_pairs(draws, MeanFlowConfig(velocity="data", instant_share=0.25))[2]) == 3000


def test_reduction_is_a_sum_with_the_power_law_weight():
    x = GivenDraws(ROWS, seed=2).noise("x", (3,))
    student = RandomStudent()
    plain = losses(mean_flow(velocity="data", weight_power=0.0), student, None, GivenDraws(ROWS), x)["student"]
    weighted = mean_flow(velocity="data", weight_power=0.75, weight_epsilon=1e-3)
    loss = losses(weighted, student, None, GivenDraws(ROWS), x)
    square = plain.per_sample
    torch.testing.assert_close(loss["student"].per_sample, square / (square.detach() + 1e-3) ** 0.75)
    torch.testing.assert_close(plain.terms["residual"], (square.mean() / 3).sqrt().detach())


def test_share_of_labels_dropped_counts_from_data_alone():
    for objective, expected in (
        (mean_flow(velocity="data", instant_share=0.75), 0.1),
        (improved(), 0.1),
        (mean_flow(), 0.0),
        (mean_flow(velocity="data", label_dropout=0.0), 0.0),
    ):
        wrapped, _, _ = spied(objective, ClassTeacher() if objective.needs_teacher else None, rows=4000)
        dropped = wrapped.calls[0][3] == 2
        assert abs(float(dropped.double().mean()) - expected) < 0.02, objective


def test_passes_for_guidance_from_data():
    kept = {"label-dropout": torch.ones(ROWS, dtype=torch.float64)}
    guided = {"guidance_min": 3.0, "guidance_max": 3.0, "instant_share": 0.5, "derivative": "forward-mode"}
    _, bare, _ = spied(mean_flow(velocity="data", **guided), None, **kept)
    assert len(bare.calls[0][0]) == ROWS  # the null class alone
    assert (bare.calls[0][3] == 2).all()
    _, bare, _ = spied(mean_flow(velocity="data", guidance_mixing=0.5, **guided), None, **kept)
    assert len(bare.calls[0][0]) == 2 * ROWS
    assert torch.equal(bare.calls[0][4][ROWS:], torch.ones(ROWS, dtype=torch.float64))
    _, bare, _ = spied(improved(**guided), None, **kept)
    assert len(bare.calls[0][0]) == 2 * ROWS
    _, bare, _ = spied(improved(instant_share=0.5), None, **kept)
    assert len(bare.calls[0][0]) == ROWS // 2  # the tangent of the moving rows
    _, bare, _ = spied(mean_flow(velocity="data", instant_share=0.5), None, **kept)
    assert len(bare.calls) == 1  # the derivative
    assert len(bare.calls[0][0]) == ROWS // 2


def test_guidance_draws():
    draws = GivenDraws(4000)
    g = improved(guidance_min=1.0, guidance_max=8.0).draw_guidance(draws)
    torch.testing.assert_close(g.log() / torch.log(torch.tensor(8.0).double()), draws.uniform("guidance").neg() + 1)
    uniform = mean_flow(guidance_min=1.0, guidance_max=3.0).draw_guidance(draws)
    assert 1 <= uniform.min() <= uniform.max() <= 3
    assert abs(float(uniform.mean()) - 2) < 0.05


def test_warmup_scales_the_derivative_term():
    student, x, draws = RandomStudent(), GivenDraws(ROWS, seed=2).noise("x", (3,)), GivenDraws(ROWS)

    def at(images, **options):
        made = mean_flow(velocity="data", weight_power=0.0, instant_share=0.0, **options)
        return losses(made, student, None, draws, x, at=progress(images))["student"].per_sample

    half = at(250, derivative_warmup_fraction=0.5)
    assert (half - at(250)).abs().median() > 1e-3
    torch.testing.assert_close(at(500, derivative_warmup_fraction=0.5), at(500))
    start = at(0, derivative_warmup_fraction=0.5)  # flow matching of the average velocity
    t, s, _ = time_pairs(draws, MeanFlowConfig(instant_share=0.0))
    noise = draws.noise("noise", (3,))
    u = student((1 - t)[:, None] * x + t[:, None] * noise, t, s, None, torch.ones_like(t))
    torch.testing.assert_close(start, (u - (noise - x)).square().sum(1))


def test_what_does_not_fit_is_refused():
    draws = GivenDraws(8)
    with pytest.raises(ConfigError, match="source"):
        losses(mean_flow(velocity="data"), RandomStudent(), None, draws)
    plain, guided, x = mean_flow(velocity="data"), mean_flow(velocity="data", guidance_max=2.0), draws.noise("x", (3,))
    with pytest.raises(ConfigError, match="classes"):
        losses(guided, RandomStudent(), None, draws, x)
    with pytest.raises(ConfigError, match="label_dropout=0"):
        losses(plain, RandomStudent(num_classes=2), None, draws, x, {"text": x})
