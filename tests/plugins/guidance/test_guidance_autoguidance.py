"""Guidance: by a weaker teacher, and of some channels alone."""

import pytest
import torch
from freeflow_guidance.autoguidance import AutoguidedTeacher
from hypothesis import given, settings
from hypothesis import strategies as st

from freeflow_core import api
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import Teacher
from freeflow_core.math.flow import extrapolate
from freeflow_core.testing.exact import GaussianTeacher


def teachers():
    mean, std = torch.zeros(2, dtype=torch.float64), torch.tensor([0.5, 1.0], dtype=torch.float64)
    return GaussianTeacher(mean, std), GaussianTeacher(mean, 1.5 * std)


def test_a_wider_guide_sharpens_the_field_by_the_formula():
    main, guide = teachers()
    teacher = AutoguidedTeacher(main, guide)
    x, t = torch.randn(6, 2, dtype=torch.float64), torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    weight = torch.tensor([1.0, 2.0, 0.5, 1.0, 0.0, 3.0])
    strong, weak = main.velocity(x, t, None), guide.velocity(x, t, None)
    torch.testing.assert_close(
        teacher.guided_velocity(x, t, None, weight), weak + weight[:, None] * (strong - weak), rtol=0, atol=1e-12
    )


def test_unguided_rows_do_not_reach_the_guide():
    main, guide = teachers()
    seen = []
    velocity = guide.velocity
    guide.velocity = lambda x, t, c: seen.append(len(x)) or velocity(x, t, c)
    teacher = AutoguidedTeacher(main, guide)
    x, t = torch.randn(4, 2, dtype=torch.float64), torch.full((4,), 0.5, dtype=torch.float64)
    teacher.guided_velocity(x, t, None, torch.ones(4))
    assert seen == []
    teacher.guided_velocity(x, t, None, torch.tensor([1.0, 2.0, 1.0, 2.0]))
    assert seen == [2]


def test_teachers_of_other_data_are_refused():
    with pytest.raises(ConfigError, match=r"states of shape \(3,\), the teacher \(2,\)"):
        AutoguidedTeacher(teachers()[0], GaussianTeacher(torch.zeros(3), torch.ones(3)))


def test_by_name_it_samples_and_gives_its_main_weights_to_a_student(tmp_path):
    settings = ("teacher.main=digits", "teacher.guide=digits")
    plain = api.sample(teacher="digits", num=4, steps=3, output=tmp_path / "a", device="cpu")
    options = {"num": 4, "steps": 3, "output": tmp_path / "b", "device": "cpu", "guidance_weight": 3}
    same = api.sample(teacher="autoguidance", settings=settings, **options)
    assert (tmp_path / "a" / "grid.png").read_bytes() == (tmp_path / "b" / "grid.png").read_bytes()
    assert same.evaluations == 2 * plain.evaluations
    wrapped = api.load_teacher("autoguidance", options={"main": "digits", "guide": "digits"})
    state = api.load_teacher("digits").network_state()
    assert wrapped.network_state().tensors.keys() == state.tensors.keys()


@given(st.integers(0, 3), st.lists(st.floats(0, 5), min_size=5, max_size=5), st.integers(0, 2**16))
@settings(max_examples=40, deadline=None)
def test_extrapolation_guides_chosen_rows_and_channels_alone(channels, weights, seed):
    generator = torch.Generator().manual_seed(seed)
    field, null = (torch.randn(5, 3, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    weight = torch.tensor(weights, dtype=torch.float64)
    rows = (weight != 1).nonzero().flatten()
    guided = extrapolate(field, null[rows], rows, weight, channels or None)
    expected = null + weight[:, None, None, None] * (field - null)
    expected[:, channels or 3 :] = field[:, channels or 3 :]
    torch.testing.assert_close(guided, expected, rtol=0, atol=1e-12)


class TwoChannels(Teacher):
    """Velocity 1 with a condition and 0 without, in both channels."""

    sample_shape = (2,)
    guidance_channels = 1

    def velocity(self, x_t, t, condition):
        return condition[:, None].expand_as(x_t).to(x_t)

    def null_condition(self, condition):
        return torch.zeros_like(condition)


def test_a_teacher_with_guidance_channels_keeps_the_conditional_velocity_in_the_others():
    v = TwoChannels().guided_velocity(torch.zeros(2, 2), torch.ones(2), torch.ones(2), torch.tensor([1.0, 4.0]))
    assert v.tolist() == [[1.0, 1.0], [4.0, 1.0]]
