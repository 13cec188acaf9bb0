"""The Fréchet distance, and the moments it is computed from."""

import itertools

import numpy as np
import pytest
import scipy
import torch
from freeflow_metrics.frechet import GroupedMoments, RunningMoments, frechet_distance
from hypothesis import given, settings
from hypothesis import strategies as st

from freeflow_core.torchvision_ops import ensure_torchvision_ops

SCIPY_WITHOUT_DISP = tuple(int(part) for part in scipy.__version__.split(".")[:2]) >= (1, 18)


def random_gaussian(seed, dim, samples=None):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples or 3 * dim, dim, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(dim, dim, generator=generator, dtype=torch.float64) + seed
    return x.mean(0), torch.cov(x.T)


@settings(max_examples=50, deadline=None)
@given(
    variances=st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=6),
    shift=st.floats(-10, 10),
    seed=st.integers(0, 1000),
)
def test_commuting_covariances_have_a_closed_form(variances, shift, seed):
    first, second = torch.tensor(variances, dtype=torch.float64).T
    dim = len(first)
    noise = torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    basis = torch.linalg.qr(noise)[0]
    mean = torch.zeros(dim, dtype=torch.float64)
    expected = dim * shift**2 + (first.sqrt() - second.sqrt()).square().sum()
    found = frechet_distance(mean, basis * first @ basis.T, mean + shift, basis * second @ basis.T)
    assert found == pytest.approx(float(expected), rel=1e-6, abs=1e-4)


def test_symmetric_and_zero_to_itself_even_when_singular():
    one, two = random_gaussian(1, 12), random_gaussian(2, 12, samples=6)
    assert frechet_distance(*one, *two) == pytest.approx(frechet_distance(*two, *one), rel=1e-6)
    for gaussian in (one, two):
        itself = frechet_distance(*gaussian, *gaussian)
        assert 0 <= itself < 1e-6 * float(gaussian[1].trace())


@pytest.mark.skipif(SCIPY_WITHOUT_DISP, reason="clean-fid's own distance does not run with scipy >= 1.18")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_agrees_with_cleanfid():
    ensure_torchvision_ops()
    from cleanfid import fid

    for dim in (3, 40):
        one, two = random_gaussian(3, dim), random_gaussian(4, dim)
        theirs = fid.frechet_distance(*(x.numpy() for x in (*one, *two)))
        assert frechet_distance(*one, *two) == pytest.approx(theirs, rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 200), max_size=8), offset=st.sampled_from([0.0, 1e6]))
def test_streaming_equals_one_shot_whatever_the_chunks(cuts, offset):
    x = torch.randn(200, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + offset
    edges = sorted([0, *cuts, 200])
    moments = RunningMoments(5)
    for low, high in itertools.pairwise(edges):
        moments.update(x[low:high])
    assert moments.count == 200
    np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(x.numpy(), rowvar=False), rtol=1e-7, atol=1e-9)


def test_without_a_group_are_the_moments_of_the_other_points():
    x = torch.randn(103, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grouped = GroupedMoments(3, 4)
    for part in x.split(17):
        grouped.update(part)
    seen = []
    grouped.standard_error(lambda part: seen.append((part.count, part.mean, part.covariance)) or 0.0)
    for left_out, (count, mean, covariance) in enumerate(seen):
        rest = torch.cat([x[i::4] for i in range(4) if i != left_out])
        assert count == len(rest)
        torch.testing.assert_close(mean, rest.mean(0))
        torch.testing.assert_close(covariance, torch.cov(rest.T))
    torch.testing.assert_close(grouped.whole().covariance, torch.cov(x.T))


def test_the_standard_error_is_that_of_many_samples():
    """Of a mean it is known, sd / sqrt(n); of the distance it is what repeated sampling shows."""
    generator = torch.Generator().manual_seed(1)
    reference = torch.zeros(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)

    def distance(part):
        return frechet_distance(*reference, part.mean, part.covariance)

    found, errors, of_mean = [], [], []
    for _ in range(200):
        grouped = GroupedMoments(4, 20)
        grouped.update(0.5 + torch.randn(400, 4, generator=generator, dtype=torch.float64))
        found.append(distance(grouped.whole()))
        errors.append(grouped.standard_error(distance))
        of_mean.append(grouped.standard_error(lambda part: float(part.mean[0])))
    assert torch.tensor(errors).mean() == pytest.approx(float(torch.tensor(found).std()), rel=0.15)
    assert torch.tensor(of_mean).mean() == pytest.approx(0.05, rel=0.05)


def test_the_standard_error_of_classes_in_turn_is_that_within_classes():
    """Far apart, as many of each: other samples would change a class's mean, and not which classes there are."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(600) % 10
    errors = []
    for _ in range(50):
        grouped = GroupedMoments(1, 10)
        points = 100.0 * labels[:, None] + torch.randn(600, 1, generator=generator, dtype=torch.float64)
        for rows in torch.arange(600).split(70):
            grouped.update(points[rows], labels[rows])
        errors.append(grouped.standard_error(lambda part: float(part.mean[0])))
    assert torch.tensor(errors).mean() == pytest.approx(600**-0.5, rel=0.1)


def test_one_group_has_no_error():
    grouped = GroupedMoments(2, 1)
    grouped.update(torch.randn(9, 2))
    assert grouped.standard_error(lambda part: 0.0) is None
