"""Energy distance: its definition, known values, unbiasedness, and the evaluator around it."""

import math

import pytest
import torch
from freeflow_metrics.config import EnergyDistanceConfig
from freeflow_metrics.distance import EnergyDistanceEvaluator
from hypothesis import given, settings
from hypothesis import strategies as st

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import EvaluationBatch
from freeflow_core.math import distances
from freeflow_core.math.distances import energy_distance


def normal(rows, dims, seed, shift=0.0, scale=1.0):
    return scale * torch.randn(rows, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + shift


def literal(x, y):
    """The definition, pair by pair."""
    across = sum(math.dist(a, b) for a in x.tolist() for b in y.tolist()) / (len(x) * len(y))

    def within(z):
        pairs = [(i, j) for i in range(len(z)) for j in range(len(z)) if i != j]
        return sum(math.dist(z[i].tolist(), z[j].tolist()) for i, j in pairs) / len(pairs)

    return 2 * across - within(x) - within(y)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 4), st.integers(0, 1000))
def test_it_is_the_definition(first, second, dims, seed):
    x, y = normal(first, dims, seed), normal(second, dims, seed + 1, shift=0.5)
    assert energy_distance(x, y) == pytest.approx(literal(x, y), rel=1e-12, abs=1e-12)
    assert energy_distance(y, x) == pytest.approx(energy_distance(x, y), rel=1e-12, abs=1e-12)


def test_one_dimensional_normals_have_a_known_distance():
    # E|N(m, s^2)| = s sqrt(2/pi) exp(-m^2 / 2 s^2) + m erf(m / s sqrt 2), with X - Y ~ N(m, 2) and X - X' ~ N(0, 2).
    m, s = 1.0, math.sqrt(2)
    mean = s * math.sqrt(2 / math.pi) * math.exp(-(m**2) / (2 * s**2)) + m * math.erf(m / (s * math.sqrt(2)))
    expected = 2 * mean - 2 * s * math.sqrt(2 / math.pi)
    quantiles = torch.special.ndtri((torch.arange(4000, dtype=torch.float64) + 0.5) / 4000).unsqueeze(1)
    assert energy_distance(quantiles, quantiles + m) == pytest.approx(expected, abs=1e-3)


def test_unbiased_between_equal_distributions():
    found = torch.tensor([energy_distance(normal(40, 2, 2 * k), normal(30, 2, 2 * k + 1)) for k in range(300)])
    error = float(found.std()) / math.sqrt(len(found))
    assert abs(float(found.mean())) < 4 * error
    assert error < 0.005
    assert found.min() < 0  # as an unbiased estimate must be, now and then


def test_blocks_change_nothing(monkeypatch):
    x, y = normal(57, 3, 0), normal(41, 3, 1, shift=0.3)
    whole = energy_distance(x, y)
    monkeypatch.setattr(distances, "_BLOCK_ELEMENTS", 100)
    assert energy_distance(x, y) == pytest.approx(whole, rel=1e-13)


@pytest.fixture
def evaluator(evaluation_context):
    def make(reference=None, **options):
        made = EnergyDistanceEvaluator(EnergyDistanceConfig(**options))
        made.prepare(evaluation_context(reference))
        return made

    return make


def test_scores_against_data_and_teacher(evaluator, score_row):
    data, teacher, row = normal(100, 2, 0), normal(90, 2, 1, shift=0.2), normal(80, 2, 2, shift=1.0)
    made = evaluator(data)
    for part in teacher.split(37):
        made.observe_reference(EvaluationBatch(part, None))
    assert score_row(made, "teacher", teacher) == {"energy_data": pytest.approx(energy_distance(teacher, data))}
    assert score_row(made, "student", row, batch_size=37) == {
        "energy_data": pytest.approx(energy_distance(row, data)),
        "energy_teacher": pytest.approx(energy_distance(row, teacher)),
    }
    assert score_row(made, "empty", row[:0]) == {}


def test_images_are_scaled_to_states(evaluator, score_row):
    images = torch.randint(0, 256, (20, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    states = images.double() / 127.5 - 1
    found = score_row(evaluator(images), "student", images)["energy_data"]
    assert found == pytest.approx(energy_distance(states, states))


def test_only_the_first_samples_are_kept(evaluator, score_row):
    data, row = normal(50, 2, 0), normal(200, 2, 1)
    found = score_row(evaluator(data, max_samples=60), "student", row, batch_size=37)["energy_data"]
    assert found == pytest.approx(energy_distance(row[:60], data))


def test_large_states_and_other_shapes_are_refused(evaluator):
    made = evaluator(normal(10, 2, 0), max_dimension=8)
    made.reset("student")
    with pytest.raises(ConfigError, match="max_dimension"):
        made.update(EvaluationBatch(torch.zeros(3, 3, 3), None))
    made.update(EvaluationBatch(torch.zeros(3, 3), None))
    with pytest.raises(ConfigError, match="shape"):
        made.compute()
