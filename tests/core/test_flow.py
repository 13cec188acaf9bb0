import pytest
import torch

from freeflow_core.engine.optimizer import ema_decay, update_average
from freeflow_core.math.flow import (
    average_velocity_jump,
    expand_times,
    jump_grid,
    linear_interpolate,
    linear_velocity,
    logit_normal,
    mean_square,
    uniform_between,
    uniform_grid,
)


def test_times_are_expanded_in_the_states_dtype():
    like = torch.zeros(3, 2, 4, 4, dtype=torch.float64)
    expanded = expand_times(torch.tensor([0.0, 0.5, 1.0]), like)
    assert expanded.shape == (3, 1, 1, 1)
    assert expanded.dtype is torch.float64


@pytest.mark.parametrize("t", [torch.tensor(0.5), torch.zeros(2), torch.zeros(3, 1)])
def test_other_shapes_are_refused(t):
    with pytest.raises(ValueError, match=r"times must be \(3,\)"):
        expand_times(t, torch.zeros(3, 2))


def test_linear_path_ends_at_data_and_noise():
    x, n = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    assert torch.equal(linear_interpolate(x, n, torch.zeros(2)), x)
    assert torch.equal(linear_interpolate(x, n, torch.ones(2)), n)
    later = linear_interpolate(x, n, torch.full((2,), 0.75))
    earlier = linear_interpolate(x, n, torch.full((2,), 0.5))
    assert torch.allclose((later - earlier) / 0.25, linear_velocity(x, n), atol=1e-5)
    assert torch.allclose(average_velocity_jump(n, linear_velocity(x, n), torch.ones(2), torch.zeros(2)), x, atol=1e-6)


def test_mean_square_is_per_sample():
    assert mean_square(torch.tensor([[[1.0, 2.0]], [[0.0, 4.0]]])).tolist() == [2.5, 8.0]


def test_grids():
    assert uniform_grid(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert jump_grid(0.5, 2).tolist() == [1.0, 0.5, 0.25, 0.0]
    with pytest.raises(ValueError, match="num_steps"):
        uniform_grid(0)


def test_logit_normal_favours_noise_with_a_positive_location():
    uniform = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    r = logit_normal(uniform, 0.8, 1.0)
    assert float(r.median()) == pytest.approx(float(torch.sigmoid(torch.tensor(0.8))), abs=1e-3)
    assert 0 < float(r.min()) < float(r.max()) < 1
    d = uniform_between(uniform, 0.0, 1.0)
    assert 0 < float(d.min()) <= float(d.max()) <= 1


def test_average_follows_its_half_life():
    assert ema_decay(10**9, 1000, 1000, None) == pytest.approx(0.5)
    assert ema_decay(1000, 10, 10**6, 0.05) == pytest.approx(0.5 ** (10 / 50))
    average, weights = [torch.zeros(3)], [torch.ones(3)]
    update_average(average, weights, torch.tensor(0.25))
    assert average[0].tolist() == [0.25] * 3
    update_average(average, weights, torch.tensor(0.0))
    assert average[0].tolist() == [0.25] * 3
