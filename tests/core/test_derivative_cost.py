"""What derivatives cost and err, as ``freeflow doctor --measure`` tells it."""

import pytest
import torch
from run_helpers import TINY, TINY_SIT, freeflow

from freeflow_core import api
from freeflow_core.errors import ConfigError
from freeflow_core.math import derivative
from freeflow_core.tools import derivatives
from freeflow_core.tools.derivatives import DerivativeCost, fastest


@pytest.fixture
def configure(manager, monkeypatch):
    monkeypatch.setattr("freeflow_core.tools.cost.rate._SECONDS", 0.0)

    def make(*settings, **overrides):
        return api.resolve_config(
            "distill", overrides=TINY | overrides, settings=("training.batch_size=4", *settings), manager=manager
        )

    return make


TRANSFORMER = {"teacher": TINY_SIT, "student": "transformer", "codec": "states"}


@pytest.mark.parametrize("trained", [0, 3])
def test_forward_mode_is_exact_to_rounding_and_differences_to_their_order(configure, manager, monkeypatch, trained):
    if not trained:
        monkeypatch.setattr(derivatives, "step_seconds", lambda *others: 1.0)
    costs = api.measure_derivatives(configure(**TRANSFORMER), manager, trained_steps=trained)
    errors = {cost.options["derivative"]: cost.error for cost in costs}
    assert list(errors) == ["forward-mode", "central", "one-sided"]
    assert 0 < errors["forward-mode"] < 1e-4
    assert errors["forward-mode"] < errors["central"] < errors["one-sided"]
    assert all(cost.step_seconds > 0 for cost in costs)


def test_errors_shrink_with_the_square_of_a_central_step(configure, registry):
    config, found = configure("runtime.precision=float64", **TRANSFORMER), []
    for step in (1e-2, 5e-3):
        ((_, duration),) = derivatives.derivative_errors(config, registry, [{"derivative": "central"}], step=step)
        found.append(duration)
    assert found[0] / found[1] == pytest.approx(4, rel=0.2)


def test_bf16_allows_no_one_sided_differences_and_tf32_neither(configure, manager, monkeypatch):
    monkeypatch.setattr(derivatives, "step_seconds", lambda *others: 1.0)

    def ways(*settings):
        return [str(cost) for cost in api.measure_derivatives(configure(*settings, **TRANSFORMER), manager)]

    own = "derivative=forward-mode, derivative_precision=run"
    assert ways("runtime.precision=bf16") == ["derivative=forward-mode", own, "derivative=central"]
    assert ways("runtime.matmul_precision=high") == ["derivative=forward-mode", "derivative=central"]
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(
    ("seconds", "errors", "best"),
    [
        ((1.0, 0.5, 0.4), (1e-6, 1e-3, 2e-2), 1),  # the fastest errs too much
        ((1.0, 0.97, 0.4), (1e-6, 1e-3, 2e-2), 0),  # as long, and exact
        ((1.0, 0.5, 0.4), (1e-6, 1e-3, 4e-3), 2),
        ((1.0, 0.5, 0.4), (2e-2, 1e-2, 3e-2), 1),  # none will do
    ],
)
def test_the_fastest_of_those_that_are_exact_enough_is_proposed(seconds, errors, best):
    assert derivative.AGREES == 5e-3
    costs = [DerivativeCost({}, took, error / 2, error) for took, error in zip(seconds, errors, strict=True)]
    assert fastest(costs) is costs[best]


def test_the_command_tells_each_way_and_what_to_set(configure, monkeypatch):
    monkeypatch.setattr(api, "diagnose", lambda manager: [])
    settings = ("training.batch_size=4", "student.initialise=random", "student.depth=1", "student.width=32")
    result = freeflow("doctor", "--measure", "digits", *(part for each in settings for part in ("--set", each)))
    found = " ".join(result.stdout.split())
    for way in ("forward-mode", "central", "one-sided"):
        assert f"derivative={way}" in found
    assert "--set objective.derivative=" in found
    with pytest.raises(ConfigError, match="no derivative"):
        api.measure_derivatives(configure(objective={"name": "freeflow-correction"}))
