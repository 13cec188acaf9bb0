"""The kernel distance."""

import numpy as np
import pytest
import torch
from freeflow_metrics.config import KernelConfig
from freeflow_metrics.distance import KernelEvaluator, kernel_distance

from freeflow_core.interfaces import EvaluationBatch


def draws(seed, count, shift=0.0):
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def unbiased_mmd(first, second):
    """Binkowski et al. 2018, eq. 4, on whole sets of equal size."""
    m, dim = first.shape
    k = lambda a, b: (a @ b.T / dim + 1) ** 3  # noqa: E731
    within = sum((k(x, x).sum() - k(x, x).diagonal().sum()) / (m * (m - 1)) for x in (first, second))
    return float(within - 2 * k(first, second).mean())


def test_matches_the_formula_when_a_subset_is_the_whole():
    first, second = draws(0, 40), draws(1, 40, shift=0.5)
    found = kernel_distance(first, second, num_subsets=1, subset_size=1000, seed=0)
    assert found == pytest.approx(unbiased_mmd(first, second), rel=1e-9)


def test_depends_on_the_seed_alone_and_leaves_numpy_s_generator_alone_even_after_an_error(monkeypatch):
    from cleanfid import fid

    first, second = draws(0, 60), draws(1, 60)
    one, again, other = (kernel_distance(first, second, num_subsets=3, subset_size=20, seed=n) for n in (5, 5, 6))
    assert one == again != other
    np.random.seed(7)
    expected = np.random.random(3)
    np.random.seed(7)
    kernel_distance(first, second, num_subsets=3, subset_size=20, seed=5)
    np.testing.assert_array_equal(np.random.random(3), expected)
    np.random.seed(7)
    monkeypatch.setattr(fid, "kernel_distance", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        kernel_distance(first, second, num_subsets=1, subset_size=5, seed=5)
    np.testing.assert_array_equal(np.random.random(3), expected)


def test_evaluator_scores_data_and_teacher(digits, evaluation_context, score_row):
    training, held_out = digits.training_images()[0], digits.held_out()[0]
    evaluator = KernelEvaluator(KernelConfig(num_subsets=10, max_samples=400))
    evaluator.prepare(evaluation_context(held_out))
    noise = torch.randint(0, 256, (300, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert set(score_row(evaluator, "data", training)) == {"kd_data"}
    evaluator.observe_reference(EvaluationBatch(training[:300], None))
    data, bad = score_row(evaluator, "data", training), score_row(evaluator, "student", noise)
    assert set(bad) == {"kd_data", "kd_teacher"}
    assert abs(data["kd_data"]) < 0.05 * bad["kd_data"]
    assert bad["kd_teacher"] > 0
    assert set(score_row(evaluator, "teacher", training)) == {"kd_data"}
    assert score_row(evaluator, "student", noise[:1]) == {}
