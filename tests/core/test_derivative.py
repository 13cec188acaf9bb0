"""Directional derivatives: exact where promised, refused where they would be noise."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freeflow_core.errors import ConfigError
from freeflow_core.math.derivative import (
    AGREES,
    DerivativeMethod,
    directional_derivative,
    float32_products,
    forward_mode_error,
    line_derivative,
    stencil,
)

X = torch.tensor([[0.3, -0.8], [1.1, 0.2]], dtype=torch.float64)


def function(x):
    return torch.sin(3 * x) * x.square()


def exact(x, d):
    return (3 * torch.cos(3 * x) * x.square() + 2 * x * torch.sin(3 * x)) * d


D = torch.tensor([[1.0, -1.0], [0.5, 2.0]], dtype=torch.float64)


def test_forward_mode_is_exact():
    found = directional_derivative(function, (X,), (D,), method=DerivativeMethod.FORWARD_MODE, step=1.0)
    assert torch.allclose(found, exact(X, D), atol=1e-14)


@pytest.mark.parametrize(("method", "order"), [(DerivativeMethod.CENTRAL, 2), (DerivativeMethod.ONE_SIDED, 1)])
def test_finite_differences_have_their_order(method, order):
    errors = []
    for step in (1e-2, 1e-3):
        found = directional_derivative(function, (X,), (D,), method=method, step=step, value=function(X))
        errors.append(float((found - exact(X, D)).norm()))
    measured = torch.log10(torch.tensor(errors[0] / errors[1]))
    assert abs(float(measured) - order) < 0.1


def test_no_gradient_escapes():
    x = X.clone().requires_grad_()
    for method in DerivativeMethod:
        found = directional_derivative(function, (x,), (D,), method=method, step=1e-3, value=function(x))
        assert not found.requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_forward_mode_is_what_differences_approach(dtype):
    """Kinks are no mistake: across them a difference is wrong until its step is small."""
    generator = torch.Generator().manual_seed(0)
    layers = [torch.randn(3, 256, generator=generator), torch.randn(256, 2, generator=generator) / 16]
    x, t, d = torch.randn(4, 2, generator=generator), torch.rand(4, generator=generator), torch.ones(4, 2)
    first, last, x, t, d = (value.to(dtype) for value in (*layers, x, t, d))

    def kinked(x, t):
        return torch.relu(torch.cat([x, t[:, None]], 1) @ first) @ last

    def half_blind(x, t):
        return kinked(x, t) + t.detach().sin()[:, None] * x

    tangents = (d, torch.ones_like(t))
    assert forward_mode_error(kinked, (x, t), tangents) < AGREES
    assert forward_mode_error(lambda x, t: torch.zeros_like(x), (x, t), tangents) < AGREES
    assert forward_mode_error(lambda x, t: half_blind(x, t.detach()) + 0 * t[:, None], (x, t), tangents) > AGREES


def test_one_sided_needs_its_value_and_float32():
    arguments = {"method": DerivativeMethod.ONE_SIDED, "step": 1e-3}
    with pytest.raises(ValueError, match="value"):
        directional_derivative(function, (X,), (D,), **arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ConfigError, match="bf16"):
        directional_derivative(function, (X,), (D,), value=function(X), **arguments)


CENTRAL, ONE_SIDED, FORWARD = DerivativeMethod.CENTRAL, DerivativeMethod.ONE_SIDED, DerivativeMethod.FORWARD_MODE


class Line:
    """f(e) = sin(a e + b) per row, and the offsets it was asked at."""

    def __init__(self, rows):
        generator = torch.Generator().manual_seed(0)
        self.a, self.b = torch.rand(2, rows, dtype=torch.float64, generator=generator) * 2
        self.asked: list[tuple[torch.Tensor, torch.Tensor | None]] = []

    def __call__(self, offset, rows):
        self.asked.append((offset, rows))
        a, b = (self.a, self.b) if rows is None else (self.a[rows], self.b[rows])
        return torch.sin(a * offset + b).unsqueeze(1)

    @property
    def value(self):
        return self.b.sin().unsqueeze(1)

    @property
    def slope(self):
        return (self.a * self.b.cos()).unsqueeze(1)


def rooms(rows):
    """Plenty on both sides, none below, none above, hardly any at all, in turn."""
    below = torch.tensor([1.0, 0.0, 0.5, 1e-4], dtype=torch.float64).repeat(rows // 4)
    above = torch.tensor([1.0, 0.5, 0.0, 3e-4], dtype=torch.float64).repeat(rows // 4)
    return below, above


@pytest.mark.parametrize(("method", "limit"), [(FORWARD, 1e-14), (CENTRAL, 1e-4), (ONE_SIDED, 2e-2)])
def test_close_to_the_derivative_in_every_row(method, limit):
    line, (below, above) = Line(16), rooms(16)
    found = line_derivative(line, below, above, line.value, method=method, step=5e-3)
    assert (found - line.slope).abs().max() < limit


@pytest.mark.parametrize("method", [CENTRAL, ONE_SIDED])
def test_no_offset_leaves_its_room(method):
    line, (below, above) = Line(16), rooms(16)
    line_derivative(line, below, above, line.value, method=method, step=5e-3)
    for offset, rows in line.asked:
        low, high = (below, above) if rows is None else (below[rows], above[rows])
        assert (offset >= -low - 1e-15).all()
        assert (offset <= high + 1e-15).all()


def test_central_error_falls_with_the_square_of_the_step_also_at_the_ends():
    line = Line(12)
    below = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64).repeat(4)
    above = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64).repeat(4)
    errors = [
        (line_derivative(line, below, above, line.value, method=CENTRAL, step=h) - line.slope).abs().reshape(4, 3)
        for h in (2e-2, 1e-2)
    ]
    assert ((errors[0].amax(0) / errors[1].amax(0)).log2() - 2).abs().max() < 0.1


def test_zero_is_asked_only_where_a_row_leans():
    line, (below, above) = Line(16), rooms(16)
    line_derivative(line, below, above, line.value, method=CENTRAL, step=5e-3)
    ((offset, rows),) = line.asked
    assert len(offset) == 2 * 16 + 12
    assert torch.equal(rows[32:], (torch.arange(16) % 4 != 0).nonzero().flatten())


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.floats(1e-4, 0.1), st.tuples(*[st.floats(-3, 3)] * 3))
def test_exact_for_parabolas(below, above, step, c):
    if max(below, above) < 1e-3:
        return
    points = stencil(torch.tensor([below]).double(), torch.tensor([above]).double(), step)

    def parabola(e):
        return (c[0] + c[1] * e + c[2] * e.square()).unsqueeze(1)

    found = points.apply(parabola(torch.zeros(1).double()), parabola(points.first), parabola(points.second))
    assert float(found) == pytest.approx(c[1], abs=1e-7)


def test_gradients_flow_through_a_stencil():
    points = stencil(torch.tensor([1.0, 0.0]).double(), torch.tensor([1.0, 1.0]).double(), 1e-3)
    k = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    values = [torch.sin(k * (0.4 + e)).unsqueeze(1) for e in (torch.zeros(2).double(), points.first, points.second)]
    (gradient,) = torch.autograd.grad(points.apply(*values).sum(), k)
    k = k.detach()
    exact = torch.cos(k * 0.4) - 0.4 * k * torch.sin(k * 0.4)  # d/dk [k cos(0.4 k)]
    assert float(gradient) == pytest.approx(2 * float(exact), abs=1e-5)


def test_a_row_without_room_is_a_mistake():
    with pytest.raises(ValueError, match="room"):
        stencil(torch.zeros(1).double(), torch.zeros(1).double(), 1e-3)


def test_differences_need_float32_products_and_forward_mode_does_not():
    seen = []

    def function(offset, rows=None):
        seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        return offset.float().unsqueeze(1)

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    room = torch.ones(4, dtype=torch.float64)
    with float32_products("high"):
        line_derivative(function, room, room, torch.zeros(4, 1), method=FORWARD, step=5e-3)
        line_derivative(function, room, room, torch.zeros(4, 1), method=CENTRAL, step=5e-3)
        with pytest.raises(ConfigError, match=r"matmul_precision=high.*forward-mode"):
            line_derivative(function, room, room, torch.zeros(4, 1), method=ONE_SIDED, step=5e-3)
    assert seen == [("high", True), ("highest", False)]
    with float32_products("highest"):
        line_derivative(function, room, room, torch.zeros(4, 1), method=ONE_SIDED, step=5e-3)
    assert before == (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)


def test_differences_are_taken_in_full_precision_under_autocast():
    matrix = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    seen = []

    def function(offset, rows):
        seen.append((offset.float().unsqueeze(1) * torch.ones(1, 3)) @ matrix)
        return seen[-1]

    room = torch.ones(4, dtype=torch.float64)
    for method in (CENTRAL, FORWARD):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = line_derivative(function, room, room, torch.zeros(4, 3), method=method, step=5e-3)
        assert seen[-1].dtype is torch.float32
        torch.testing.assert_close(found, (torch.ones(4, 3) @ matrix), rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        line_derivative(function, room, room, torch.zeros(4, 3), method=FORWARD, step=5e-3, autocast=True)
    assert seen[-1].dtype is torch.bfloat16
