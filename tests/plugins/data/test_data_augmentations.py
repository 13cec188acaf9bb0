from __future__ import annotations

from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from freeflow_data.augmentations import AugmentationChain, Dice, build_augmentation
from freeflow_data.augmentations.colour import Colour
from freeflow_data.augmentations.cutout import Cutout
from freeflow_data.augmentations.elastic import CONTROL_POINTS, smooth_field, spline_weights
from freeflow_data.augmentations.flip import Flip
from freeflow_data.augmentations.rigid import Rotation, Shift
from freeflow_data.config import DigitsConfig, ImageOptions
from freeflow_data.digits import DigitsSource, load_all_digits
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from freeflow_core.interfaces import BuildContext
from freeflow_core.math.random import PhiloxDraws

NAMES = ("flip", "shift", "rotation", "elastic", "colour", "cutout")
CONTEXT = BuildContext(device=torch.device("cpu"), seed=0, component=lambda *_: None)
DIGITS = load_all_digits().images[:40].repeat_interleave(4, -1).repeat_interleave(4, -2)


def chain(*names: str, multiplier: float = 1.0, seed: int = 0, **options: object) -> AugmentationChain | None:
    choices = [{"name": name, **options} for name in names]
    return build_augmentation(
        ImageOptions.model_validate({"augment": choices, "augment_strength": multiplier, "seed": seed})
    )


def augmented(images: Tensor, *names: str, start: int = 0, multiplier: float = 1.0, **options: object) -> Tensor:
    built = chain(*names, multiplier=multiplier, **options)
    number = torch.arange(start, start + len(images))
    return images.clone() if built is None else built(images, number)


@dataclass(frozen=True)
class LoadedDice(Dice):
    """Every throw is the same number."""

    value: float = 0.0

    def share(self, name: str) -> Tensor:
        return torch.full((len(self.draws.index),), self.value, dtype=torch.float64)

    def sign(self, name: str) -> Tensor:
        return self.share(name)


def loaded(value: float, num: int) -> LoadedDice:
    return LoadedDice(PhiloxDraws(0, torch.arange(num)), "test", value)


@pytest.mark.parametrize("options", [{"strength": 0.0}, {"probability": 0.0}, {"multiplier": 0.0}])
def test_nothing_is_done_at_strength_or_probability_zero(options: dict[str, float]) -> None:
    assert chain(*NAMES, **options) is None


def test_augment_strength_zero_trains_on_the_same_bits() -> None:
    plain = DigitsSource.from_config(DigitsConfig(), CONTEXT)
    off = DigitsSource.from_config(DigitsConfig.model_validate({"augment": NAMES, "augment_strength": 0}), CONTEXT)
    for expected, found in zip(islice(plain.batches(0, 32, 0, 1), 3), islice(off.batches(0, 32, 0, 1), 3), strict=True):
        assert torch.equal(expected.x, found.x)  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=4),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from(["edge", "reflect", "black"]),
    st.sampled_from([1, 3]),
    st.tuples(st.integers(4, 11), st.integers(4, 11)),
    st.integers(1, 5),
)
def test_any_chain_gives_images_of_the_same_kind(
    names: list[str], strength: float, probability: float, padding: str, channels: int, sides: tuple[int, int], num: int
) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (num, channels, *sides), dtype=np.uint8))
    before = images.clone()
    found = augmented(images, *names, strength=strength, probability=probability, padding=padding)
    assert (found.shape, found.dtype) == (images.shape, torch.uint8)
    assert torch.equal(images, before)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 10**6), st.permutations(NAMES))
def test_an_image_does_not_depend_on_its_batch(sizes: list[int], start: int, names: list[str]) -> None:
    images = DIGITS[: sum(sizes)] if sum(sizes) <= len(DIGITS) else DIGITS
    whole = augmented(images, *names, start=start)
    parts, first = [], 0
    for size in sizes:
        part = images[first : first + size]
        if len(part):
            parts.append(augmented(part, *names, start=start + first))
        first += size
    assert torch.equal(whole[: sum(map(len, parts))], torch.cat(parts))


@pytest.mark.parametrize("name", NAMES)
def test_more_strength_changes_more(name: str) -> None:
    distance = [
        float((augmented(DIGITS, name, strength=s).float() - DIGITS.float()).square().mean())
        for s in (0.0, 0.1, 0.3, 0.6, 1.0)
    ]
    assert distance[0] == 0
    assert all(low < high for low, high in pairwise(distance)), distance


@pytest.mark.parametrize("name", NAMES)
def test_probability_is_the_share_of_images_changed(name: str) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (400, 1, 8, 8), dtype=np.uint8))
    found = augmented(images, name, strength=1.0, probability=0.3)
    share = (found != images).flatten(1).any(1).float().mean()
    assert 0.22 < float(share) < 0.38  # 400 coins: 3.5 standard deviations


def test_draws_are_new_in_every_epoch_and_another_seed() -> None:
    images = DIGITS[:6]
    first = augmented(images, "rotation", start=0)
    assert not torch.equal(first, augmented(images, "rotation", start=6))
    assert not torch.equal(first, augmented(images, "rotation", seed=1))
    assert torch.equal(first, augmented(images, "rotation", start=0))


def test_taking_one_augmentation_away_leaves_the_draws_of_the_others() -> None:
    black = torch.zeros_like(DIGITS)
    assert torch.equal(augmented(black, "cutout"), augmented(black, "flip", "rotation", "cutout"))


def test_the_same_augmentation_twice_draws_twice() -> None:
    black = torch.zeros_like(DIGITS)
    once, twice = augmented(black, "cutout"), augmented(black, "cutout", "cutout")
    assert (twice == 128).sum() > 1.5 * (once == 128).sum()


def test_a_resumed_source_goes_on_with_the_same_augmented_images() -> None:
    config = DigitsConfig.model_validate({"augment": ["shift", {"name": "rotation", "strength": 1}], "seed": 3})
    whole = [batch.x for batch in islice(DigitsSource.from_config(config, CONTEXT).batches(0, 50, 0, 1), 30)]
    later = DigitsSource.from_config(config, CONTEXT).batches(20 * 50, 50, 0, 1)
    for expected, found in zip(whole[20:], islice(later, 10), strict=True):  # into the second epoch of 1200
        assert torch.equal(expected, found.x)  # type: ignore[arg-type]


def test_held_out_and_training_images_are_shown_as_they_are() -> None:
    plain = DigitsSource.from_config(DigitsConfig(), CONTEXT)
    changed = DigitsSource.from_config(DigitsConfig.model_validate({"augment": NAMES}), CONTEXT)
    assert torch.equal(plain.held_out()[0], changed.held_out()[0])  # type: ignore[index]
    assert torch.equal(plain.training_images()[0], changed.training_images()[0])


def test_flip_mirrors_and_mirrors_back() -> None:
    images = DIGITS.float()
    flip, dice = Flip(1.0), loaded(0.5, len(images))
    assert torch.equal(flip.apply(images, dice), images.flip(-1))
    assert torch.equal(flip.apply(flip.apply(images, dice), dice), images)


@pytest.mark.parametrize("side", [28, 32])
def test_full_shift_is_a_quarter_of_the_side_to_the_right_and_down(side: int) -> None:
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 255
    moved, step = Shift(1.0, "black").apply(images, loaded(1.0, 2)), side // 4
    torch.testing.assert_close(moved[..., step:, step:], images[..., :-step, :-step], rtol=0, atol=0.02)
    assert moved[..., : step - 1, :].abs().max() < 0.02


@pytest.mark.parametrize(("padding", "value"), [("edge", 7.0), ("black", 0.0)])
def test_padding_decides_what_moves_in(padding: str, value: float) -> None:
    images = torch.full((1, 1, 8, 8), 7.0)
    moved = Shift(1.0, padding).apply(images, loaded(1.0, 1))  # type: ignore[arg-type]
    assert moved[0, 0, 0, 0] == pytest.approx(value, abs=1e-3)


def test_reflection_moves_the_mirror_image_in() -> None:
    images = torch.arange(8.0).expand(1, 1, 8, 8)
    moved = Shift(1.0, "reflect").apply(images, loaded(1.0, 1))
    torch.testing.assert_close(moved[0, 0, 0], torch.tensor([1.0, 0, 0, 1, 2, 3, 4, 5]), rtol=0, atol=1e-3)


def test_full_rotation_is_a_quarter_turn_clockwise() -> None:
    images = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(0)) * 255
    turned = Rotation(1.0, "edge").apply(images, loaded(1.0, 2))
    torch.testing.assert_close(turned, torch.rot90(images, -1, (2, 3)), rtol=0, atol=0.02)


def test_rotation_keeps_angles_in_oblong_images() -> None:
    images = torch.zeros(1, 1, 41, 81)
    images[:, :, 20, 10:71] = 255  # a line through the centre, turned by 45 degrees
    turned = Rotation(0.5, "black").apply(images, loaded(1.0, 1))[0, 0]
    y, x = (turned > 100).nonzero().float().T
    assert float((y - 20 - (x - 40)).abs().max()) <= 1.5


def test_spline_weights_are_shares_and_reproduce_straight_lines() -> None:
    weights = spline_weights(28, CONTROL_POINTS)
    torch.testing.assert_close(weights.sum(0), torch.ones(28))
    assert float(weights.min()) >= 0
    line = smooth_field(torch.arange(6.0).expand(1, 6, 6), 28, 28)[0, 0]
    torch.testing.assert_close(line.diff(), torch.full((27,), 3 / 28), rtol=1e-4, atol=1e-5)


def test_hue_and_saturation_leave_grey_alone_and_keep_the_mean_of_the_channels() -> None:
    colours = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 255
    grey = colours.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    augmentation, dice = Colour(1.0), Dice(PhiloxDraws(0, torch.arange(6)), "test")
    one, three = augmentation.apply(grey[:, :1], dice), augmentation.apply(grey, dice)
    torch.testing.assert_close(three, one.expand(-1, 3, -1, -1), rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(augmentation.apply(colours, dice).mean(1), one[:, 0], rtol=1e-4, atol=1e-2)
    assert (augmentation.apply(colours, dice) - three).abs().max() > 30


def test_cutout_covers_a_quarter_of_the_area_at_full_strength_anywhere_inside() -> None:
    images = torch.zeros(300, 1, 8, 12)
    covered = Cutout(1.0).apply(images, Dice(PhiloxDraws(0, torch.arange(300)), "test")) == 127.5
    assert torch.equal(covered.flatten(1).sum(1), torch.full((300,), 4 * 6))
    assert bool(covered.any(0).all())  # corners too


def test_options_are_written_short_or_long_and_checked() -> None:
    config = ImageOptions.model_validate({"augment": ["flip", {"name": "shift", "strength": 0.2}]})
    assert [(a.name, a.strength, a.probability) for a in config.augment] == [("flip", 0.5, 1.0), ("shift", 0.2, 1.0)]
    for wrong in (["flap"], [{"name": "flip", "strength": 1.5}], [{"name": "flip", "size": 1}], [{"strength": 1}]):
        with pytest.raises(ValidationError):
            ImageOptions.model_validate({"augment": wrong})
