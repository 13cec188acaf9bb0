"""Which way a velocity field runs, judged from the field alone."""

from __future__ import annotations

import math
from typing import Any, Self

import pytest
import torch
from freeflow_toy.gaussian_mixture import GaussianMixtureTeacher
from torch import Tensor

from freeflow_core.config import ComponentConfig
from freeflow_core.engine.direction import Reading, check_direction
from freeflow_core.interfaces import BuildContext, Teacher
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.testing.exact import GaussianTeacher
from freeflow_core.types import Condition, Draws

ANGLES = torch.arange(8, dtype=torch.float64) * math.pi / 4
RING = 2 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
TEACHERS: dict[str, Teacher] = {
    "gaussian": GaussianTeacher(torch.tensor([0.5, -1.0]), torch.tensor([0.5, 2.0])),
    "mean-only": GaussianTeacher(torch.tensor([0.6, 0.0]), torch.tensor([1.0, 1.0])),
    "ring": GaussianMixtureTeacher(RING, stds=torch.full((8,), 0.1)),
    "two-modes": GaussianMixtureTeacher(torch.tensor([[-1.0], [1.0]]), stds=torch.tensor([0.3, 0.3])),
}
WRONG = {
    "sign": (Reading.SIGN, "its sign runs the wrong way"),
    "time": (Reading.TIME, "its time runs the wrong way: it takes"),
    "both": (Reading.BOTH, "its time runs the wrong way, and with it the sign"),
}


class Turned(Teacher):
    """A teacher as a port without conversion would give it."""

    def __init__(self, teacher: Teacher, mistake: str) -> None:
        super().__init__()
        self.teacher, self.mistake = teacher, mistake
        self.sample_shape = teacher.sample_shape

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        raise NotImplementedError

    def velocity(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        v = self.teacher.velocity(x_t, 1 - t if self.mistake in ("time", "both") else t, condition)
        return -v if self.mistake in ("sign", "both") else v

    def null_condition(self, condition: Condition) -> Condition:
        return None

    def sample_condition(self, draws: Draws) -> Condition:
        return None

    def balanced_condition(self, index: Tensor) -> Condition:
        return None


def draws(rows: int = 1_024) -> PhiloxDraws:
    return PhiloxDraws(3, torch.arange(rows), dtype=torch.float64)


@pytest.mark.parametrize("name", TEACHERS)
def test_a_right_field_passes(name: str) -> None:
    found = check_direction(TEACHERS[name], None, draws())
    assert found.right
    assert found.errors[Reading.AS_GIVEN] < 0.07
    assert set(found.errors) == {Reading.AS_GIVEN}  # the others are not even asked for


@pytest.mark.parametrize("name", TEACHERS)
@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_field_is_named(name: str, mistake: str) -> None:
    found = check_direction(Turned(TEACHERS[name], mistake), None, draws())
    reading, words = WRONG[mistake]
    assert not found.right
    assert found.errors[reading] < 0.07
    assert words in found.diagnosis


def test_a_centred_gaussian_cannot_tell_both_from_none() -> None:
    """The field of N(0, s^2), turned both ways, is the field of N(0, 1 / s^2) exactly."""
    teacher = GaussianTeacher(torch.zeros(2), torch.full((2,), 0.5))
    inverse = GaussianTeacher(torch.zeros(2), torch.full((2,), 2.0))
    x, t = draws(8).noise("x", (2,)), torch.linspace(0.1, 0.9, 8, dtype=torch.float64)
    torch.testing.assert_close(Turned(teacher, "both").velocity(x, t, None), inverse.velocity(x, t, None))
    assert check_direction(Turned(teacher, "both"), None, draws()).right
    assert not check_direction(Turned(teacher, "sign"), None, draws()).right


@pytest.mark.parametrize("wrong", [lambda v, x: 0 * v, lambda v, x: 2 * v, lambda v, x: x - v, lambda v, x: v / 0])
def test_a_field_that_is_no_velocity_has_no_direction(wrong: Any) -> None:
    class Other(Turned):
        def velocity(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
            field: Tensor = wrong(self.teacher.velocity(x_t, t, condition), x_t)
            return field

    found = check_direction(Other(TEACHERS["ring"], "none"), None, draws())
    assert not found.right
    assert "what it predicts" in found.diagnosis
