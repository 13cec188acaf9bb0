import hashlib
from itertools import islice

import numpy as np
import pytest
import torch
from freeflow_data.config import ImageOptions
from freeflow_data.images import Images, ImageSource, stratified_split
from freeflow_data.plain import load_all_digits
from hypothesis import given
from hypothesis import strategies as st

from freeflow_core.errors import ConfigError

SIZE = 23


def numbered(size=SIZE, seed=0, labels=True):
    """Image r holds the value r and has the label r + 100, so that a batch shows which rows it took."""
    values = torch.arange(size, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    images = Images.in_memory(values, torch.arange(size) + 100 if labels else None)
    return ImageSource(images, None, size if labels else None, ImageOptions(seed=seed))


def blocks(source, start, batch_size, rank, world, num):
    found = []
    for batch in islice(source.batches(start, batch_size, rank, world), num):
        assert (batch.x.shape, batch.x.dtype) == ((batch_size, 3, 2, 2), torch.uint8)
        rows = batch.x[:, 0, 0, 0].long()
        assert torch.equal(batch.condition, rows + 100)  # labels stay with their images
        found.append(rows.tolist())
    return found


def rows_of(source, start, count):
    return blocks(source, start, count, 0, 1, 1)[0]


@given(st.integers(0, 200), st.integers(1, 9), st.integers(1, 4), st.integers(1, 5))
def test_any_split_over_ranks_sees_the_same_rows_in_the_same_places(start, batch_size, world, num):
    source = numbered()
    ranks = [blocks(source, start, batch_size, rank, world, num) for rank in range(world)]
    joined = [row for item in range(num) for rank in range(world) for row in ranks[rank][item]]
    assert joined == rows_of(source, start, num * world * batch_size)


@given(st.integers(1, 6), st.integers(1, 3), st.integers(0, 8), st.integers(1, 4))
def test_resuming_goes_on_as_if_never_interrupted(batch_size, world, done, num):
    for rank in range(world):
        uninterrupted = blocks(numbered(), 0, batch_size, rank, world, done + num)[done:]
        assert blocks(numbered(), done * world * batch_size, batch_size, rank, world, num) == uninterrupted


def test_each_epoch_and_each_seed_has_an_order_of_its_own():
    first, second = rows_of(numbered(), 0, SIZE), rows_of(numbered(), SIZE, SIZE)
    assert sorted(first) == sorted(second) == list(range(SIZE))
    assert first != second
    assert first != rows_of(numbered(seed=1), 0, SIZE)


@pytest.mark.parametrize("place", [(-1, 2, 0, 1), (0, 0, 0, 1), (0, 2, 1, 1), (0, 2, -1, 1)])
def test_an_impossible_place_is_refused_at_the_call(place):
    with pytest.raises(ValueError, match="0 <= rank < world_size"):
        numbered().batches(*place)


def test_a_source_without_training_images_is_refused():
    with pytest.raises(ConfigError, match="at least one training image"):
        numbered(0)


@st.composite
def labels_and_share(draw):
    counts = draw(st.lists(st.integers(4, 30), min_size=1, max_size=6))
    shuffled = list(np.repeat(np.arange(len(counts)), counts))
    draw(st.randoms(use_true_random=False)).shuffle(shuffled)
    return np.array(shuffled), draw(st.integers(0, len(shuffled) // 2))


@given(labels_and_share(), st.integers(0, 2**63 - 1))
def test_split_is_a_partition_with_each_class_within_one_of_its_share(case, seed):
    labels, num_held_out = case
    training, held_out = stratified_split(labels, num_held_out, seed)
    assert len(held_out) == num_held_out
    assert np.array_equal(np.sort(np.concatenate([training, held_out])), np.arange(len(labels)))
    counts = np.bincount(labels)
    proportional = counts * num_held_out / len(labels)
    assert np.all(np.abs(np.bincount(labels[held_out], minlength=len(counts)) - proportional) < 1)


def test_split_of_the_digits_is_pinned_and_depends_on_its_seed():
    labels = load_all_digits().labels
    training, held_out = stratified_split(labels.numpy(), 597, 0)
    assert (len(training), len(held_out)) == (1200, 597)
    assert hashlib.sha256(held_out.astype("<i8").tobytes()).hexdigest()[:16] == "1774993df4e4dd5c"
    assert not np.array_equal(held_out, stratified_split(labels.numpy(), 597, 1)[1])


@pytest.mark.parametrize("num_held_out", [1797, 5000, 1796])
def test_split_that_empties_a_class_is_refused_by_name(num_held_out):
    with pytest.raises(ConfigError, match=rf"held_out={num_held_out} of 1797 .* in class \d"):
        load_all_digits().split(num_held_out, 0)
