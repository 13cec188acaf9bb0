"""The exact oracles shipped to plugin authors, against the toy teacher's independent formulas."""

import pytest
import torch
from freeflow_toy.gaussian_mixture import GaussianMixtureTeacher
from hypothesis import given, settings
from hypothesis import strategies as st

from freeflow_core.errors import CheckpointError
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.testing.exact import GaussianStudent, GaussianTeacher
from freeflow_core.types import NetworkState

F64 = torch.float64
MEAN, STD = torch.tensor([0.7, -1.2, 3.0], dtype=F64), torch.tensor([0.1, 1.0, 2.5], dtype=F64)
unit = st.floats(0, 1, allow_subnormal=False)


def draws(n):
    return PhiloxDraws(0, torch.arange(n), dtype=F64)


def test_teacher_agrees_with_the_mixture_of_one():
    mixture, teacher = GaussianMixtureTeacher(MEAN[None], stds=STD[None]), GaussianTeacher(MEAN, STD)
    x, t, s = draws(50).noise("x", (3,)), draws(50).uniform("t"), draws(50).uniform("s")
    t[0], t[1], s[2], s[3] = 0, 1, 0, 1
    torch.testing.assert_close(teacher.velocity(x, t, None), mixture.velocity(x, t, None), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(teacher.exact_flow_map(x, t, s), mixture.exact_flow_map(x, t, s), rtol=1e-12, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(t=unit, s=unit)
def test_student_is_the_exact_map(t, s):
    teacher, student, x = GaussianTeacher(MEAN, STD), GaussianStudent(MEAN, STD), draws(4).noise("x", (3,))
    t, s = torch.full((4,), t, dtype=F64), torch.full((4,), s, dtype=F64)
    torch.testing.assert_close(
        student.flow_map(x, t, s, None, None), teacher.exact_flow_map(x, t, s), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(student(x, t, t, None, None), teacher.velocity(x, t, None), rtol=1e-12, atol=1e-12)


def test_nothing_cancels_near_the_diagonal():
    """u(x, t, t - h) stays within O(h) of v for tiny h, where a difference quotient would lose every digit."""
    teacher, student, x = GaussianTeacher(MEAN, STD), GaussianStudent(MEAN, STD), draws(9).noise("x", (3,))
    t = torch.linspace(0, 1, 9, dtype=F64)
    for h in (1e-6, 1e-10, 1e-15):
        error = (student(x, t, t - h, None, None) - teacher.velocity(x, t, None)).abs().max()
        assert error < 200 * h + 1e-12


def test_wrong_parameters_are_not_the_exact_map_and_have_gradients():
    teacher, student = GaussianTeacher(MEAN, STD), GaussianStudent(MEAN + 0.1, STD * 1.1)
    z, one = draws(16).noise("z", (3,)), torch.ones(16, dtype=F64)
    error = student.flow_map(z, one, 0 * one, None, None) - teacher.exact_flow_map(z, one, 0 * one)
    error.square().mean().backward()
    assert error.abs().max() > 0.05
    assert (student.mean.grad > 0).all()
    assert (student.std.grad != 0).all()


def test_student_state_round_trip_and_honest_report():
    student = GaussianStudent(MEAN, STD)
    again = GaussianStudent.from_state(student.network_state())
    assert torch.equal(again.mean, MEAN)
    assert torch.equal(again.std, STD)
    report = student.load_teacher(GaussianTeacher(MEAN * 2, STD))
    assert (report.taken, report.new) == ((), ("mean", "std"))
    assert torch.equal(student.mean, MEAN)
    state = student.network_state()
    with pytest.raises(CheckpointError, match="family"):
        GaussianStudent.from_state(NetworkState("other", state.config, state.tensors))
    with pytest.raises(CheckpointError, match="missing: std"):
        GaussianStudent.from_state(NetworkState(state.family, state.config, {"mean": MEAN}))
