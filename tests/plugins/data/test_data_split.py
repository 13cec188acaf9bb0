from __future__ import annotations

import hashlib

import numpy as np
import pytest
from freeflow_data.digits import load_all_digits
from freeflow_data.split import stratified_split
from hypothesis import given
from hypothesis import strategies as st

from freeflow_core.errors import ConfigError


def digit_labels() -> np.ndarray:
    labels = load_all_digits().labels
    assert labels is not None
    return labels.numpy()


@st.composite
def labels_and_share(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    counts = draw(st.lists(st.integers(4, 30), min_size=1, max_size=6))
    labels = np.repeat(np.arange(len(counts)), counts)
    order = draw(st.randoms(use_true_random=False))
    shuffled = list(labels)
    order.shuffle(shuffled)
    return np.array(shuffled), draw(st.integers(0, len(labels) // 2))


@given(labels_and_share(), st.integers(0, 2**63 - 1))
def test_split_is_a_partition_with_each_class_within_one_of_its_share(case: tuple[np.ndarray, int], seed: int) -> None:
    labels, num_held_out = case
    training, held_out = stratified_split(labels, num_held_out, seed)
    assert len(held_out) == num_held_out
    assert np.array_equal(np.sort(np.concatenate([training, held_out])), np.arange(len(labels)))
    counts = np.bincount(labels)
    proportional = counts * num_held_out / len(labels)
    assert np.all(np.abs(np.bincount(labels[held_out], minlength=len(counts)) - proportional) < 1)


def test_split_of_the_digits_is_pinned() -> None:
    training, held_out = stratified_split(digit_labels(), 597, 0)
    assert (len(training), len(held_out)) == (1200, 597)
    assert hashlib.sha256(held_out.astype("<i8").tobytes()).hexdigest()[:16] == "1774993df4e4dd5c"


def test_split_depends_on_its_seed() -> None:
    labels = digit_labels()
    assert not np.array_equal(stratified_split(labels, 597, 0)[1], stratified_split(labels, 597, 1)[1])


def test_split_chooses_all_over_a_class_and_not_its_first_images() -> None:
    labels = np.zeros(3000, dtype=np.int64)
    held_out = stratified_split(labels, 1000, 5)[1]
    # The mean of 1000 of 3000 ranks drawn without replacement has a standard error of 22.
    assert abs(held_out.mean() - 1499.5) < 100


@pytest.mark.parametrize("num_held_out", [1797, 5000, 1796])
def test_split_that_empties_a_class_is_refused_by_name(num_held_out: int) -> None:
    with pytest.raises(ConfigError, match=rf"held_out={num_held_out} of 1797 .* in class \d.*smaller held_out"):
        stratified_split(digit_labels(), num_held_out, 0)
