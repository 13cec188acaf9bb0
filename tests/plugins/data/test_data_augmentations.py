from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from freeflow_data.augmentations import Augmentations, flip, rotation, shift
from freeflow_data.config import DigitsConfig, ImageOptions
from freeflow_data.plain import DigitsSource, load_all_digits
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

NAMES = ("flip", "shift", "rotation")
DIGITS = load_all_digits()[np.arange(40)].repeat_interleave(4, -1).repeat_interleave(4, -2)


def augmented(images, *names, start=0, **options):
    outer = {key: options.pop(key) for key in ("seed", "augment_strength") if key in options}
    choices = [{"name": name, **options} for name in names]
    augment = Augmentations(ImageOptions.model_validate({"augment": choices, **outer}))
    return augment(images, torch.arange(start, start + len(images)))


def always(value, num):
    """Every draw is the same number in (0, 1)."""
    return lambda name: torch.full((num,), value, dtype=torch.float64)


@pytest.mark.parametrize("options", [{"strength": 0.0}, {"probability": 0.0}, {"augment_strength": 0.0}])
def test_nothing_is_done_at_strength_or_probability_zero(options):
    assert torch.equal(augmented(DIGITS, *NAMES, **options), DIGITS)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=4),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from(["edge", "reflect", "black"]),
    st.sampled_from([1, 3]),
    st.tuples(st.integers(4, 11), st.integers(4, 11)),
    st.integers(1, 5),
)
def test_any_chain_gives_images_of_the_same_kind(names, strength, probability, padding, channels, sides, num):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (num, channels, *sides), dtype=np.uint8))
    before = images.clone()
    found = augmented(images, *names, strength=strength, probability=probability, padding=padding)
    assert (found.shape, found.dtype) == (images.shape, torch.uint8)
    assert torch.equal(images, before)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 10**6), st.permutations(NAMES))
def test_an_image_does_not_depend_on_its_batch(sizes, start, names):
    whole = augmented(DIGITS[: sum(sizes)], *names, start=start)
    parts, first = [], 0
    for size in sizes:
        parts.append(augmented(DIGITS[first : first + size], *names, start=start + first))
        first += size
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("name", NAMES)
def test_more_strength_changes_more(name):
    distance = [
        float((augmented(DIGITS, name, strength=s).float() - DIGITS.float()).square().mean())
        for s in (0.0, 0.1, 0.3, 0.6, 1.0)
    ]
    assert distance[0] == 0
    assert all(low < high for low, high in pairwise(distance)), distance


@pytest.mark.parametrize("name", NAMES)
def test_probability_is_the_share_of_images_changed(name):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (400, 1, 8, 8), dtype=np.uint8))
    found = augmented(images, name, strength=1.0, probability=0.3)
    share = (found != images).flatten(1).any(1).float().mean()
    assert 0.22 < float(share) < 0.38  # 400 coins: 3.5 standard deviations


def test_one_augmentation_more_leaves_the_draws_of_the_others():
    grey = torch.full_like(DIGITS, 9)  # neither mirrored nor shifted with its edges is it another image
    assert torch.equal(
        augmented(grey, "rotation", padding="black"),
        augmented(augmented(grey, "shift"), "flip", "rotation", padding="black"),
    )


def test_a_resumed_source_goes_on_with_the_same_augmented_images():
    config = DigitsConfig.model_validate({"augment": ["shift", {"name": "rotation", "strength": 1}], "seed": 3})
    whole = [batch.x for batch in islice(DigitsSource(config).batches(0, 50, 0, 1), 30)]
    later = DigitsSource(config).batches(20 * 50, 50, 0, 1)
    for expected, found in zip(whole[20:], islice(later, 10), strict=True):  # into the second epoch of 1200
        assert torch.equal(expected, found.x)


def test_held_out_and_training_images_are_shown_as_they_are():
    plain, changed = DigitsSource(DigitsConfig()), DigitsSource(DigitsConfig.model_validate({"augment": NAMES}))
    assert torch.equal(plain.held_out()[0], changed.held_out()[0])
    assert torch.equal(plain.training_images()[0], changed.training_images()[0])


def test_flip_mirrors_the_share_of_its_strength():
    images = DIGITS.float()
    assert torch.equal(flip(images, 0.6, always(0.5, len(images)), "edge"), images.flip(-1))
    assert torch.equal(flip(images, 0.4, always(0.5, len(images)), "edge"), images)


@pytest.mark.parametrize("side", [28, 32])
def test_full_shift_is_a_quarter_of_the_side_to_the_right_and_down(side):
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 255
    moved, step = shift(images, 1.0, always(1.0, 2), "black"), side // 4
    torch.testing.assert_close(moved[..., step:, step:], images[..., :-step, :-step], rtol=0, atol=0.02)
    assert moved[..., : step - 1, :].abs().max() < 0.02


@pytest.mark.parametrize(
    ("padding", "row"),
    [("edge", [1.0, 1, *range(1, 7)]), ("black", [0.0, 0, *range(1, 7)]), ("reflect", [2.0, 1, *range(1, 7)])],
)
def test_padding_decides_what_moves_in(padding, row):
    images = torch.arange(1.0, 9).expand(1, 1, 8, 8)
    moved = shift(images, 1.0, lambda name: torch.tensor([1.0 if name == "right" else 0.5]).double(), padding)
    torch.testing.assert_close(moved[0, 0, 4], torch.tensor(row), rtol=0, atol=1e-3)


def test_full_rotation_is_a_quarter_turn_clockwise():
    images = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(0)) * 255
    turned = rotation(images, 1.0, always(1.0, 2), "edge")
    torch.testing.assert_close(turned, torch.rot90(images, -1, (2, 3)), rtol=0, atol=0.02)


def test_options_are_written_short_or_long_and_checked():
    config = ImageOptions.model_validate({"augment": ["flip", {"name": "shift", "strength": 0.2}]})
    assert [(a.name, a.strength, a.probability) for a in config.augment] == [("flip", 0.5, 1.0), ("shift", 0.2, 1.0)]
    for wrong in (["flap"], [{"name": "flip", "strength": 1.5}], [{"name": "flip", "size": 1}], [{"strength": 1}]):
        with pytest.raises(ValidationError):
            ImageOptions.model_validate({"augment": wrong})
