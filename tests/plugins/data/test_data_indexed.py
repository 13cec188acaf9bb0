import numpy as np
from freeflow_data.images import EpochOrder, keyed_permutation
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(1, 40), st.integers(0, 2**63 - 1), st.integers(0, 5))
def test_each_epoch_visits_each_image_once(size, seed, epoch):
    rows = EpochOrder(size, seed).rows(epoch * size, size)
    assert np.array_equal(np.sort(rows), np.arange(size))


@given(st.integers(1, 12), st.integers(0, 50), st.lists(st.integers(0, 30), max_size=6))
def test_a_row_is_a_function_of_the_image_number_alone(size, start, counts):
    whole = EpochOrder(size, 3).rows(start, sum(counts))
    resumed = EpochOrder(size, 3)
    resumed.rows(start + 60, 5)  # and going back gives the earlier epochs again
    parts, position = [np.empty(0, dtype=np.int64)], start
    for count in counts:
        parts.append(resumed.rows(position, count))
        position += count
    assert np.array_equal(whole, np.concatenate(parts))


def test_permutation_is_pinned():
    assert keyed_permutation(0, "epoch-0", 12).tolist() == [4, 10, 1, 6, 0, 2, 7, 5, 8, 3, 11, 9]


def test_permutations_are_uniform():
    # 6 orders of 3 elements, 100 expected each; chi-squared with 5 degrees of freedom exceeds 25.7 once in 10^4.
    codes = [4 * p[0] + p[1] for p in (keyed_permutation(seed, "s", 3) for seed in range(600))]
    counts = np.unique(codes, return_counts=True)[1]
    assert len(counts) == 6
    assert ((counts - 100) ** 2 / 100).sum() < 25.7
