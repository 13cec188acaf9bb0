"""What all objectives here have in common: what they need, the sum of a batch's parts, precision, refusals."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from exact_maps import ClassTeacher, RandomStudent
from freeflow_baselines import config as options_of
from freeflow_baselines.consistency import Consistency
from freeflow_baselines.continuous_consistency import ContinuousConsistency
from freeflow_baselines.eulerian import Eulerian
from freeflow_baselines.facm import FACM
from freeflow_baselines.flow_matching import FlowMatching
from freeflow_baselines.imm import IMM
from freeflow_baselines.lagrangian import Lagrangian
from freeflow_baselines.pairs import PairRegression
from freeflow_baselines.pi_flow import PiFlow
from freeflow_baselines.progressive import Progressive
from freeflow_baselines.score_distillation import ScoreDistillation
from freeflow_baselines.shortcut import Shortcut
from freeflow_toy.config import MLPPolicyStudentConfig
from freeflow_toy.mlp import MLPPolicyStudent
from objective_helpers import build, losses
from pydantic import ValidationError
from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import AverageVelocityStudent, Objective, PolicyStudent, StartTimes, Student
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.types import Draws

ANY, PRIOR, TO_DATA = StartTimes.ANY, StartTimes.PRIOR, StartTimes.ANY_TO_DATA


@dataclass(frozen=True)
class Variant:
    """An objective with options, and what it says of itself."""

    target: type[Objective]
    options: dict[str, Any]
    data: bool
    teacher: bool
    start_times: StartTimes = ANY
    requires: type[Student] = AverageVelocityStudent

    def build(self, precision: str = "float64") -> Objective:
        name = {PairRegression: "Pairs"}.get(self.target, self.target.__name__)
        built: Objective = build(self.target, getattr(options_of, f"{name}Config")(**self.options), precision)
        return built


VARIANTS = {
    "flow-matching": Variant(FlowMatching, {"label_dropout": 0.5}, True, False),
    "consistency": Variant(Consistency, {}, True, True, TO_DATA),
    "consistency-data": Variant(Consistency, {"velocity": "data"}, True, False, TO_DATA),
    "continuous-consistency": Variant(ContinuousConsistency, {}, True, True, TO_DATA),
    "continuous-consistency-data": Variant(ContinuousConsistency, {"velocity": "data"}, True, False, TO_DATA),
    "facm": Variant(FACM, {}, True, True, TO_DATA),
    "facm-data": Variant(FACM, {"velocity": "data"}, True, False, TO_DATA),
    "shortcut": Variant(Shortcut, {}, True, True),
    "shortcut-data": Variant(Shortcut, {"velocity": "data", "guidance_max": 2.0}, True, False),
    "lagrangian": Variant(Lagrangian, {}, True, True),
    "lagrangian-prior": Variant(Lagrangian, {"start": "prior"}, False, True, PRIOR),
    "lagrangian-data": Variant(Lagrangian, {"velocity": "data"}, True, False),
    "eulerian": Variant(Eulerian, {}, True, True),
    "eulerian-full": Variant(Eulerian, {"gradient": "full"}, True, True),
    "eulerian-data": Variant(Eulerian, {"velocity": "data", "gradient": "time"}, True, False),
    "imm": Variant(IMM, {}, True, False),
    "imm-teacher": Variant(IMM, {"velocity": "teacher", "guidance_max": 2.0}, True, True),
    "score-distillation": Variant(ScoreDistillation, {"critic_updates": 1}, False, True, PRIOR),
    "pairs": Variant(PairRegression, {"solver_steps": 2}, False, True, PRIOR, Student),
    "rectified-flow": Variant(PairRegression, {"mode": "rectified-flow", "solver_steps": 2}, False, True),
    "progressive": Variant(Progressive, {"start_steps": 4}, True, True, PRIOR),
    "progressive-prior": Variant(Progressive, {"states": "prior", "final_steps": 2}, False, True),
    "pi-flow": Variant(PiFlow, {"num_segments": 2, "component_dropout": 0.3}, True, True, ANY, PolicyStudent),
    "pi-flow-prior": Variant(PiFlow, {"states": "prior"}, False, True, PRIOR, PolicyStudent),
}
every_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


@every_variant
def test_it_says_what_it_needs(variant):
    made = variant.build()
    assert (made.needs_data, made.needs_teacher) == (variant.data, variant.teacher)
    assert (made.start_times, made.requires) == (variant.start_times, variant.requires)
    assert not made.uses_batch_means


def found(
    variant: Variant,
    draws: Draws,
    rows: Tensor,
    dtype: torch.dtype = torch.float64,
    teacher: ClassTeacher | None = None,
) -> dict[str, Any]:
    """Losses of the rows of a batch of 32."""
    teacher = teacher or ClassTeacher().to(dtype)
    x, labels = (part[rows] for part in ClassTeacher().data(32))
    student: Any = RandomStudent(num_classes=2, dtype=dtype)
    if variant.requires is PolicyStudent:
        torch.manual_seed(0)
        size = {"width": 16, "depth": 1, "num_components": 4, "num_substeps": 8}
        student = MLPPolicyStudent(MLPPolicyStudentConfig(sample_shape=(3,), num_classes=2, **size)).to(dtype)
    data = (x.to(dtype), labels) if variant.data else (None, None)
    return losses(variant.build(), student, teacher if variant.teacher else None, draws, *data)


@every_variant
def test_a_batch_is_the_sum_of_its_parts(variant):
    draws = PhiloxDraws(7, torch.arange(32), dtype=torch.float64)
    whole = found(variant, draws, draws.index)
    parts = [found(variant, draws.rows(rows), rows) for rows in torch.arange(32).split(8)]
    for role, loss in whole.items():
        total = torch.stack([part[role].per_sample.sum() for part in parts]).sum()
        torch.testing.assert_close(total, loss.per_sample.sum(), rtol=1e-10, atol=1e-12)
        assert loss.per_sample.shape == (32,)
        assert all(term.ndim == 0 and not term.requires_grad for term in loss.terms.values())


@every_variant
def test_losses_are_float32_under_bf16_autocast(variant):
    draws = PhiloxDraws(7, torch.arange(32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses_found = found(variant, draws, draws.index, torch.float32)
    assert all(loss.per_sample.dtype is torch.float32 for loss in losses_found.values())
    assert all(loss.per_sample.isfinite().all() for loss in losses_found.values())


@every_variant
def test_the_teacher_is_guided_inside_the_interval_alone(variant):
    if not variant.teacher or variant.target is PairRegression:  # pairs decide at each step's start
        return
    options = {"guidance_min": 2.0, "guidance_max": 3.0, "guidance_interval": (0.3, 0.7)}
    guided, teacher = replace(variant, options={**variant.options, **options}), ClassTeacher()
    draws = PhiloxDraws(7, torch.arange(32), dtype=torch.float64)
    found(guided, draws, draws.index, teacher=teacher)
    t, weight = (torch.cat(parts) for parts in zip(*teacher.asked, strict=True))
    inside = (t >= 0.3) & (t <= 0.7)
    assert inside.any()
    assert torch.equal(weight != 1, inside)
    assert torch.isin(weight[inside], 3 - draws.uniform("guidance")).all()


@every_variant
def test_without_data_those_that_need_it_refuse(variant):
    if variant.data and variant.requires is not PolicyStudent:
        teacher = ClassTeacher() if variant.teacher else None
        with pytest.raises(ConfigError, match="source"):
            losses(variant.build(), RandomStudent(num_classes=2), teacher, PhiloxDraws(7, torch.arange(32)))


@pytest.mark.parametrize("target", [ContinuousConsistency, FACM, Lagrangian, Eulerian])
def test_one_sided_differences_of_a_bf16_pass_are_refused(target):
    with pytest.raises(ConfigError, match="one-sided"):
        Variant(target, {"derivative": "one-sided"}, True, True).build("bf16")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Consistency", {"sigma_min": 90.0}),
        ("Consistency", {"velocity": "data", "guidance_max": 2.0}),
        ("Consistency", {"guidance_min": 2.0}),
        ("Consistency", {"guidance_interval": (0.7, 0.2)}),
        ("Shortcut", {"base_steps": 100}),
        ("Shortcut", {"base_steps": 1}),
        ("Shortcut", {"velocity": "data", "guidance_max": 2.0, "label_dropout": 0.0}),
        ("Lagrangian", {"start": "prior", "velocity": "data"}),
        ("Eulerian", {"gradient": "full", "tangent_normalisation": True}),
        ("Eulerian", {"gradient": "time", "tangent_warmup_fraction": 0.1}),
        ("IMM", {"statistic": "u", "group_size": 1}),
        ("ScoreDistillation", {"time_low": 0.6, "time_high": 0.5}),
        ("Progressive", {"start_steps": 12}),
        ("Progressive", {"start_steps": 2, "final_steps": 4}),
        ("Progressive", {"round_images": (100,)}),
    ],
)
def test_options_that_contradict_each_other_are_refused(name, options):
    with pytest.raises(ValidationError):
        getattr(options_of, f"{name}Config")(**options)
