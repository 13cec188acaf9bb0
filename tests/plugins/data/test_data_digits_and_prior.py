import hashlib
from itertools import islice

import torch
from freeflow_data.config import DigitsConfig
from freeflow_data.plain import DigitsSource
from sklearn.datasets import load_digits


def test_digits_are_grey_levels_scaled_and_rounded():
    source, original = DigitsSource(DigitsConfig(held_out=0)), load_digits()
    assert source.held_out() is None
    images, labels = source.training_images()
    levels = {v: round(v * 255 / 16) for v in range(17)}
    expected = torch.tensor([levels[int(v)] for v in original.images.ravel()], dtype=torch.uint8)
    assert torch.equal(images, expected.reshape(1797, 1, 8, 8))
    assert torch.equal(labels, torch.from_numpy(original.target))


def test_default_split_holds_out_597_images_that_training_never_sees():
    source = DigitsSource(DigitsConfig())
    assert (source.has_data, source.image_shape, source.num_classes) == (True, (1, 8, 8), 10)
    held, held_labels = source.held_out()
    train, train_labels = source.training_images()
    assert (len(held), len(train)) == (597, 1200)
    key = torch.cat([torch.cat([held, train]).flatten(1), torch.cat([held_labels, train_labels])[:, None].byte()], 1)
    everything, labels = DigitsSource(DigitsConfig(held_out=0)).training_images()
    whole = torch.cat([everything.flatten(1), labels[:, None].byte()], 1)
    assert sorted(map(bytes, key.numpy())) == sorted(map(bytes, whole.numpy()))
    visited = torch.cat([b.x for b in islice(source.batches(0, 100, 0, 1), 12) if b.x is not None])
    assert sorted(map(bytes, visited.flatten(1).numpy())) == sorted(map(bytes, train.flatten(1).numpy()))


def test_first_batch_is_pinned():
    batch = next(DigitsSource(DigitsConfig()).batches(0, 64, 0, 1))
    assert hashlib.sha256(batch.x.numpy().tobytes()).hexdigest()[:16] == "ff92224b8106871d"
