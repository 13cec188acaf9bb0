"""Directional derivatives: exact where promised, refused where they would be noise."""

from __future__ import annotations

import pytest
import torch

from freeflow_core.errors import ConfigError
from freeflow_core.math.derivative import DerivativeMethod, compare_derivatives, directional_derivative

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


def test_comparison_names_the_error():
    assert compare_derivatives(function, (X,), (D,), method=DerivativeMethod.CENTRAL, step=1e-3) < 1e-5
    assert compare_derivatives(function, (X,), (D,), method=DerivativeMethod.CENTRAL, step=1.0) > 0.1


def test_one_sided_needs_its_value_and_float32():
    arguments = {"method": DerivativeMethod.ONE_SIDED, "step": 1e-3}
    with pytest.raises(ValueError, match="value"):
        directional_derivative(function, (X,), (D,), **arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ConfigError, match="bf16"):
        directional_derivative(function, (X,), (D,), value=function(X), **arguments)


def test_differences_run_in_full_precision_under_autocast():
    weight = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    x, d = torch.full((4, 16), 0.3), torch.ones(4, 16)
    reference = torch.cos(x @ weight) * (d @ weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = directional_derivative(
            lambda x: torch.sin(x @ weight), (x,), (d,), method=DerivativeMethod.CENTRAL, step=5e-3
        )
    assert found.dtype is torch.float32
    assert float((found - reference).norm() / reference.norm()) < 1e-2
