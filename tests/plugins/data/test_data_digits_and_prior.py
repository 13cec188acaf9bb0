from __future__ import annotations

import hashlib
from itertools import islice

import pytest
import torch
from freeflow_data.config import DigitsConfig, PriorConfig
from freeflow_data.digits import DigitsSource, load_all_digits
from freeflow_data.prior import PriorSource
from sklearn.datasets import load_digits
from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import BuildContext
from freeflow_core.types import Batch


def no_component(kind: str, name: str, options: dict[str, object]) -> object:
    raise AssertionError("these sources need no other component")


CONTEXT = BuildContext(device=torch.device("cpu"), seed=0, component=no_component)


def images_and_labels(pair: tuple[Tensor, object] | None) -> tuple[Tensor, Tensor]:
    assert pair is not None
    images, labels = pair
    assert isinstance(labels, Tensor)
    return images, labels


def test_digits_are_grey_levels_scaled_and_rounded() -> None:
    digits, original = load_all_digits(), load_digits()
    assert digits.images.shape == (1797, 1, 8, 8)
    levels = {round(v): round(v * 255 / 16) for v in range(17)}
    expected = torch.tensor([levels[int(v)] for v in original.images.ravel()], dtype=torch.uint8)
    assert torch.equal(digits.images.flatten(), expected)
    assert torch.equal(digits.labels, torch.from_numpy(original.target))  # type: ignore[arg-type]


def test_digits_describe_themselves() -> None:
    source = DigitsSource.from_config(DigitsConfig(), CONTEXT)
    assert source.has_data
    assert source.image_shape == (1, 8, 8)
    assert source.num_classes == 10


def test_default_split_holds_out_597_images_that_training_never_sees() -> None:
    source = DigitsSource.from_config(DigitsConfig(), CONTEXT)
    held, held_labels = images_and_labels(source.held_out())
    train, train_labels = images_and_labels(source.training_images())
    assert (len(held), len(train)) == (597, 1200)
    everything = torch.cat([held, train]).flatten(1)
    key = torch.cat([everything, torch.cat([held_labels, train_labels])[:, None].byte()], 1)
    all_digits = load_all_digits()
    assert all_digits.labels is not None
    whole = torch.cat([all_digits.images.flatten(1), all_digits.labels[:, None].byte()], 1)
    assert sorted(map(bytes, key.numpy())) == sorted(map(bytes, whole.numpy()))
    visited = torch.cat([b.x for b in islice(source.batches(0, 100, 0, 1), 12) if b.x is not None])
    assert sorted(map(bytes, visited.flatten(1).numpy())) == sorted(map(bytes, train.flatten(1).numpy()))


def test_first_batch_is_pinned() -> None:
    batch = next(DigitsSource.from_config(DigitsConfig(), CONTEXT).batches(0, 64, 0, 1))
    assert batch.x is not None
    assert hashlib.sha256(batch.x.numpy().tobytes()).hexdigest()[:16] == "ff92224b8106871d"


def test_the_shuffle_seed_leaves_the_split_alone() -> None:
    first, second = (DigitsSource.from_config(DigitsConfig(seed=seed), CONTEXT) for seed in (0, 1))
    assert torch.equal(images_and_labels(first.held_out())[0], images_and_labels(second.held_out())[0])
    assert not torch.equal(next(first.batches(0, 64, 0, 1)).x, next(second.batches(0, 64, 0, 1)).x)  # type: ignore[arg-type]


def test_digits_can_train_on_everything() -> None:
    source = DigitsSource.from_config(DigitsConfig(held_out=0), CONTEXT)
    assert source.held_out() is None
    assert len(source.training_images()[0]) == 1797


def test_digits_refuse_to_hold_out_everything() -> None:
    with pytest.raises(ConfigError, match="held_out=1797 of 1797"):
        DigitsSource.from_config(DigitsConfig(held_out=1797), CONTEXT)


def test_prior_gives_nothing_forever() -> None:
    source = PriorSource.from_config(PriorConfig(), CONTEXT)
    assert not source.has_data
    assert source.held_out() is None
    assert source.training_images() is None
    assert source.image_shape is None
    assert list(islice(source.batches(7, 4, 1, 2), 100)) == [Batch(None, None)] * 100
