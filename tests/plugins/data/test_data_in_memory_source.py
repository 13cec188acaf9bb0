from __future__ import annotations

from itertools import islice
from typing import Any, Self, final

import pytest
import torch
from freeflow_data.in_memory import ImageSet, InMemorySource
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from freeflow_core.config import ComponentConfig
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import BuildContext

SIZE = 23


@final
class NumberedSource(InMemorySource):
    """Image r holds the value r and has the label r + 100, so that a batch shows which rows it took."""

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        raise NotImplementedError


def numbered(size: int = SIZE, seed: int = 0) -> NumberedSource:
    images = torch.arange(size, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    return NumberedSource(ImageSet(images, torch.arange(size) + 100), None, size, seed)


def blocks(source: InMemorySource, start: int, batch_size: int, rank: int, world: int, num: int) -> list[list[int]]:
    found = []
    for batch in islice(source.batches(start, batch_size, rank, world), num):
        assert batch.x is not None
        assert isinstance(batch.condition, Tensor)
        assert batch.x.shape == (batch_size, 3, 2, 2)
        assert batch.x.dtype == torch.uint8
        rows = batch.x[:, 0, 0, 0].long()
        assert torch.equal(batch.condition, rows + 100)  # labels stay with their images
        found.append(rows.tolist())
    return found


def rows_of(source: InMemorySource, start: int, count: int) -> list[int]:
    return blocks(source, start, count, 0, 1, 1)[0]


@given(st.integers(0, 200), st.integers(1, 9), st.integers(1, 4), st.integers(1, 5))
def test_any_split_over_ranks_sees_the_same_rows_in_the_same_places(
    start: int, batch_size: int, world: int, num: int
) -> None:
    source = numbered()
    ranks = [blocks(source, start, batch_size, rank, world, num) for rank in range(world)]
    joined = [row for item in range(num) for rank in range(world) for row in ranks[rank][item]]
    assert joined == rows_of(source, start, num * world * batch_size)


@given(st.integers(1, 6), st.integers(1, 3), st.integers(0, 8), st.integers(1, 4))
def test_resuming_goes_on_as_if_never_interrupted(batch_size: int, world: int, done: int, num: int) -> None:
    for rank in range(world):
        uninterrupted = blocks(numbered(), 0, batch_size, rank, world, done + num)[done:]
        assert blocks(numbered(), done * world * batch_size, batch_size, rank, world, num) == uninterrupted


@given(st.integers(1, 4), st.sampled_from([1, 2, 3, 6]), st.sampled_from([1, 2]))
def test_a_global_batch_holds_the_same_rows_however_it_is_accumulated(step: int, micro: int, world: int) -> None:
    batch_size = 12
    per_rank = batch_size // (micro * world)
    found: list[int] = []
    for rank in range(world):
        items = blocks(numbered(), 0, per_rank, rank, world, (step + 1) * micro)[step * micro :]
        found += [row for item in items for row in item]
    assert sorted(found) == sorted(rows_of(numbered(), step * batch_size, batch_size))


def test_one_epoch_visits_each_image_once_and_the_next_one_in_another_order() -> None:
    first, second = rows_of(numbered(), 0, SIZE), rows_of(numbered(), SIZE, SIZE)
    assert sorted(first) == sorted(second) == list(range(SIZE))
    assert first != second


def test_the_seed_orders_the_images() -> None:
    assert rows_of(numbered(seed=0), 0, SIZE) != rows_of(numbered(seed=1), 0, SIZE)


def test_unlabelled_images_have_no_condition() -> None:
    source = NumberedSource(ImageSet(torch.zeros(4, 1, 2, 2, dtype=torch.uint8)), None, None, 0)
    batch = next(source.batches(0, 3, 0, 1))
    assert batch.condition is None
    assert source.num_classes is None
    assert source.training_images()[1] is None


@pytest.mark.parametrize("place", [(-1, 2, 0, 1), (0, 0, 0, 1), (0, 2, 1, 1), (0, 2, -1, 1)])
def test_an_impossible_place_is_refused_at_the_call(place: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="start >= 0, batch_size >= 1 and 0 <= rank < world_size"):
        numbered().batches(*place)


@pytest.mark.parametrize(
    ("images", "labels", "expected"),
    [
        (torch.zeros(4, 1, 2, 2), None, "uint8"),
        (torch.zeros(4, 2, 2, dtype=torch.uint8), None, "uint8"),
        (torch.zeros(4, 2, 2, 3, dtype=torch.uint8), None, "channels second"),
        (torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), r"int64 \(4,\)"),
        (torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4), r"int64 \(4,\)"),
    ],
)
def test_ill_shaped_images_and_labels_are_refused(images: Tensor, labels: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        ImageSet(images, labels)


def test_a_source_without_training_images_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one training image"):
        NumberedSource(ImageSet(torch.zeros(0, 1, 2, 2, dtype=torch.uint8)), None, None, 0)
