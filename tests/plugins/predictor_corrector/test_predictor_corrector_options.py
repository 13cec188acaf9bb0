"""Options: ranges, times and guidance for every admissible configuration, and torch-free loading."""

import math

import pytest
import torch
from freeflow_predictor_corrector.config import CorrectionConfig, FreeFlowConfig, PredictionConfig
from freeflow_predictor_corrector.correction import noise_levels
from freeflow_predictor_corrector.prediction import durations
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_helpers import philox
from pydantic import ValidationError

DRAWN = {
    "u": st.lists(st.floats(2.0**-54, 1 - 2.0**-53), min_size=1, max_size=8),
    "kind": st.sampled_from(["uniform", "logit-normal"]),
    "location": st.floats(-10, 10),
    "scale": st.floats(0.01, 10),
}


@settings(max_examples=200)
@given(**DRAWN, least=st.floats(0, 0.99), end=st.floats(0, 1))
def test_durations_lie_in_their_interval(u, kind, location, scale, least, end):
    config = PredictionConfig(
        duration=kind, duration_location=location, duration_scale=scale, duration_min=least, endpoint_share=end
    )
    uniform = torch.tensor(u, dtype=torch.float64)
    d = durations(uniform, config)
    assert d.dtype == torch.float64
    assert least <= d.min() <= d.max() <= 1
    assert d.min() > 0
    assert torch.all(d[uniform <= end] == 1)


@settings(max_examples=200)
@given(**DRAWN, ends=st.tuples(st.floats(0, 0.98), st.floats(0.01, 1)).filter(lambda e: e[0] < e[1]))
def test_noise_levels_lie_in_their_interval(u, kind, location, scale, ends):
    config = CorrectionConfig(r_distribution=kind, r_location=location, r_scale=scale, r_low=ends[0], r_high=ends[1])
    r = noise_levels(torch.tensor(u, dtype=torch.float64), config)
    assert ends[0] <= r.min() <= r.max() <= ends[1] + 1e-15
    assert r.min() > 0


def test_distributions_have_their_shares():
    draws = philox(20_000)
    d = durations(draws.uniform("a"), PredictionConfig(endpoint_share=0.3, duration_min=0.2))
    assert (d == 1).double().mean() == pytest.approx(0.3, abs=0.015)
    assert d[d < 1].mean() == pytest.approx(0.6, abs=0.01)
    r = noise_levels(draws.uniform("b"), CorrectionConfig())
    assert r.median() == pytest.approx(1 / (1 + math.exp(-0.8)), abs=0.01)
    assert torch.logit(r).std() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(
    "options",
    [
        {"guidance_min": 3, "guidance_max": 2},
        {"guidance_interval": (0.9, 0.1)},
        {"correction_guidance_interval": (0.9, 0.8)},
        {"correction_guidance_profile": ((0.5, 1.0),)},
        {"correction_guidance_profile": ((0.5, 1.0), (0.4, 0.0))},
        {"correction_guidance_profile": ((0.5, 1.0), (1.4, 0.0))},
        {"correction_guidance_profile": ((0.5, -1.0), (0.6, 0.0))},
        {"r_low": 0.5, "r_high": 0.5},
        {"balance_strength": float("nan")},
    ],
)
def test_options_that_contradict_each_other_are_refused(options):
    with pytest.raises(ValidationError):
        FreeFlowConfig(**options)
