"""What these objectives and MeanFlow's have in common: what they need, the sum of a batch's parts, precision, refusals."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_maps import ClassTeacher, RandomStudent, policy_student
from objective_helpers import build, losses
from pydantic import ValidationError

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import AverageVelocityStudent, PolicyStudent, StartTimes, Student
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.plugin import Manager, Registry

DIAGNOSTICS = (Path(__file__).parents[3] / "docs" / "how-to" / "read-the-diagnostics.md").read_text("utf-8")
REGISTRY = Registry(Manager.load())
ANY, PRIOR, TO_DATA = StartTimes.ANY, StartTimes.PRIOR, StartTimes.ANY_TO_DATA


@dataclass(frozen=True)
class Variant:
    """An objective with options, and what it says of itself."""

    name: str
    options: dict[str, Any]
    data: bool
    teacher: bool
    start_times: StartTimes = ANY
    requires: type[Student] = AverageVelocityStudent

    def build(self, precision="float64"):
        component = REGISTRY.component("objective", self.name)
        return build(component.load_target(), component.load_config_class()(**self.options), precision)


VARIANTS = {
    "flow-matching": Variant("flow-matching", {"label_dropout": 0.5}, True, False),
    "consistency": Variant("consistency", {}, True, True, TO_DATA),
    "consistency-data": Variant("consistency", {"velocity": "data"}, True, False, TO_DATA),
    "continuous-consistency": Variant("continuous-consistency", {}, True, True, TO_DATA),
    "continuous-consistency-data": Variant("continuous-consistency", {"velocity": "data"}, True, False, TO_DATA),
    "facm": Variant("facm", {}, True, True, TO_DATA),
    "facm-data": Variant("facm", {"velocity": "data"}, True, False, TO_DATA),
    "shortcut": Variant("shortcut", {}, True, True),
    "shortcut-data": Variant("shortcut", {"velocity": "data", "guidance_max": 2.0}, True, False),
    "lagrangian": Variant("lagrangian", {}, True, True),
    "lagrangian-prior": Variant("lagrangian", {"start": "prior"}, False, True, PRIOR),
    "lagrangian-data": Variant("lagrangian", {"velocity": "data"}, True, False),
    "eulerian": Variant("eulerian", {}, True, True),
    "eulerian-full": Variant("eulerian", {"gradient": "full"}, True, True),
    "eulerian-data": Variant("eulerian", {"velocity": "data", "gradient": "time"}, True, False),
    "meanflow": Variant("meanflow", {}, True, True),
    "meanflow-data": Variant("meanflow", {"velocity": "data", "instant_share": 0.5}, True, False),
    "improved-meanflow": Variant("improved-meanflow", {}, True, False),
    "imm": Variant("imm", {}, True, False),
    "imm-teacher": Variant("imm", {"velocity": "teacher", "guidance_max": 2.0}, True, True),
    "score-distillation": Variant("score-distillation", {"critic_updates": 1}, False, True, PRIOR),
    "pairs": Variant("pairs", {"solver_steps": 2}, False, True, PRIOR, Student),
    "rectified-flow": Variant("pairs", {"mode": "rectified-flow", "solver_steps": 2}, False, True),
    "progressive": Variant("progressive", {"start_steps": 4}, True, True, PRIOR),
    "progressive-prior": Variant("progressive", {"states": "prior", "final_steps": 2}, False, True),
    "pi-flow": Variant("pi-flow", {"num_segments": 2, "component_dropout": 0.3}, True, True, ANY, PolicyStudent),
    "pi-flow-prior": Variant("pi-flow", {"states": "prior"}, False, True, PRIOR, PolicyStudent),
}
every_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


@every_variant
def test_it_says_what_it_needs(variant):
    made = variant.build()
    assert (made.needs_data, made.needs_teacher) == (variant.data, variant.teacher)
    assert (made.start_times, made.requires) == (variant.start_times, variant.requires)
    assert not made.uses_batch_means


def found(variant, draws, rows, dtype=torch.float64, teacher=None):
    """Losses of the rows of a batch of 32."""
    teacher = teacher or ClassTeacher().to(dtype)
    x, labels = (part[rows] for part in ClassTeacher().data(32))
    student = RandomStudent(num_classes=2, dtype=dtype)
    if variant.requires is PolicyStudent:
        student = policy_student(num_classes=2, width=16, depth=1, num_components=4, num_substeps=8).to(dtype)
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
        for name in loss.terms.keys() - {"loss"}:
            assert f"`{name}`" in DIAGNOSTICS, "the page does not explain it"


@every_variant
def test_losses_are_float32_under_bf16_autocast(variant):
    draws = PhiloxDraws(7, torch.arange(32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses_found = found(variant, draws, draws.index, torch.float32)
    assert all(loss.per_sample.dtype is torch.float32 for loss in losses_found.values())
    assert all(loss.per_sample.isfinite().all() for loss in losses_found.values())


@every_variant
def test_the_teacher_is_guided_inside_the_interval_alone(variant):
    if not variant.teacher or variant.name == "pairs":  # pairs decide at each step's start
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


@pytest.mark.parametrize(
    "name", ["continuous-consistency", "facm", "lagrangian", "eulerian", "meanflow", "improved-meanflow"]
)
def test_one_sided_differences_of_a_bf16_pass_are_refused(name):
    with pytest.raises(ConfigError, match="one-sided"):
        Variant(name, {"derivative": "one-sided"}, True, True).build("bf16")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("consistency", {"sigma_min": 90.0}),
        ("consistency", {"velocity": "data", "guidance_max": 2.0}),
        ("consistency", {"guidance_min": 2.0}),
        ("consistency", {"guidance_interval": (0.7, 0.2)}),
        ("shortcut", {"base_steps": 100}),
        ("shortcut", {"base_steps": 1}),
        ("shortcut", {"velocity": "data", "guidance_max": 2.0, "label_dropout": 0.0}),
        ("lagrangian", {"start": "prior", "velocity": "data"}),
        ("eulerian", {"gradient": "full", "tangent_normalisation": True}),
        ("eulerian", {"gradient": "time", "tangent_warmup_fraction": 0.1}),
        ("meanflow", {"guidance_min": 3.0, "guidance_max": 2.0}),
        ("meanflow", {"guidance_interval": (0.6, 0.4)}),
        ("meanflow", {"guidance_mixing": 0.5}),
        ("meanflow", {"velocity": "data", "guidance_max": 2.0, "label_dropout": 0.0}),
        ("meanflow", {"end_scale": 1.0}),
        ("meanflow", {"instant_share": 1.0}),
        ("improved-meanflow", {"guidance_max": 2.0, "label_dropout": 0.0}),
        ("improved-meanflow", {"guidance_min": 0.0}),
        ("improved-meanflow", {"velocity": "teacher"}),
        ("imm", {"statistic": "u", "group_size": 1}),
        ("score-distillation", {"time_low": 0.6, "time_high": 0.5}),
        ("progressive", {"start_steps": 12}),
        ("progressive", {"start_steps": 2, "final_steps": 4}),
        ("progressive", {"round_images": (100,)}),
    ],
)
def test_options_that_contradict_each_other_are_refused(name, options):
    with pytest.raises(ValidationError):
        REGISTRY.component("objective", name).load_config_class()(**options)
