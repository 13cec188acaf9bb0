"""What sources and codecs promise."""

import itertools
from typing import ClassVar

import torch
from torch import Tensor

from freeflow_core.errors import ConfigError, FreeflowError
from freeflow_core.interfaces import Codec, Source
from freeflow_core.testing.contracts.base import ComponentContract, draws_of, same
from freeflow_core.testing.contracts.teacher import rows_of
from freeflow_core.types import Batch, Condition, concatenate_conditions, describe, index_condition

_SIZE = 4
_MOST_IMAGES = 3_000
_IMAGES = 4


class SourceContract(ComponentContract):
    """Checks of a source."""

    kind: ClassVar[str] = "source"

    def test_batches_are_what_it_says(self) -> None:
        source: Source = self.build()
        for batch in itertools.islice(source.batches(0, _SIZE, 0, 1), 3):
            self.expect(isinstance(batch, Batch), "a freeflow_core.types.Batch", describe(batch))
            if not source.has_data:
                empty = batch.x is None and batch.condition is None
                came = f"{describe(batch.x)} and {describe(batch.condition)}"
                self.expect(empty, "batches without states and conditions where has_data = False", came)
                continue
            x = batch.x
            if x is None:
                self.fail("states in every batch of a source with has_data = True", "None")
            self.expect(len(x) == _SIZE, f"{_SIZE} rows for batch_size={_SIZE}", describe(x))
            if source.encoded_by is None and x.dtype is not torch.float32:
                good = x.dtype is torch.uint8 and x.ndim == 4 and x.shape[1] in (1, 3)
                self.expect(good, "uint8 images (N, 1|3, H, W), or float32 states and their codec", describe(x))
            else:
                self.expect(x.is_floating_point() and bool(torch.isfinite(x).all()), "finite float states", describe(x))
            if source.image_shape is not None:
                self.expect_tensor(x, (_SIZE, *source.image_shape), "states of image_shape,")

    def test_labels_are_in_range(self) -> None:
        source: Source = self.build()
        if not source.has_data:
            self.skip("it has no data")
        _, condition = self.first(source, 8)
        if source.num_classes is None:
            unlabelled = not isinstance(condition, Tensor) or condition.is_floating_point()
            self.expect(unlabelled, "num_classes, the number of classes, of a source that gives labels", "None")
            return
        self.expect_labels(condition, source.num_classes, 8 * _SIZE, "8 batches")

    def test_goes_on_where_it_was(self) -> None:
        source: Source = self.build()
        through, labels = self.first(source, 6)
        for skipped in (1, 3):
            again, their_labels = self.first(source, 6 - skipped, start=skipped * _SIZE)
            same = _same_rows(through, labels, again, their_labels, skipped * _SIZE)
            expected = f"batches({skipped * _SIZE}, ...) to begin with image {skipped * _SIZE}"
            self.expect(same, expected, "other images", "Make image i a function of the seed and i alone.")

    def test_two_processes_share_the_rows(self) -> None:
        source: Source = self.build()
        whole, labels = self.first(source, 4)
        iterators = [source.batches(0, _SIZE, rank, 2) for rank in (0, 1)]
        blocks = [next(iterators[block % 2]) for block in range(4)]
        found, their_labels = _joined(blocks)
        same = _same_rows(whole, labels, found, their_labels, 0)
        advice = "Image numbers of a block are start + (k * world_size + rank) * batch_size + 0, 1, ..."
        self.expect(same, "block k of rank r of 2 to be block 2 k + r of a single process", "other images", advice)

    def test_built_again_it_is_the_same(self) -> None:
        advice = "Draw the order from a generator of its own, seeded by an option."
        self.expect_repeatable(lambda: self.first(self.build(), 3), "a source of the same options", advice)

    def test_held_out_images_are_apart(self) -> None:
        source: Source = self.build()
        held = source.held_out()
        if held is None:
            self.skip("it holds nothing out")
        images, labels = held
        self.expect(len(images) > 0, "held-out images, or None instead of no image", describe(images))
        self.expect(rows_of(labels) in (None, len(images)), f"{len(images)} labels, or None", describe(labels))
        if source.image_shape is not None:
            same = tuple(images.shape[1:]) == tuple(source.image_shape)
            self.expect(same, f"held-out images of shape {tuple(source.image_shape)}", describe(images))
        training = source.training_images()
        if training is None or len(training[0]) > _MOST_IMAGES or len(images) > _MOST_IMAGES:
            return
        seen = {image.numpy().tobytes() for image in training[0].cpu()}
        shared = sum(image.numpy().tobytes() in seen for image in images.cpu())
        self.expect(shared == 0, "held-out images that are not trained on", f"{shared} of {len(images)} that are")

    def first(self, source: Source, num: int, start: int = 0) -> tuple[Tensor | None, Condition]:
        """States and conditions of ``num`` batches from image ``start`` on, of a single process."""
        return _joined(list(itertools.islice(source.batches(start, _SIZE, 0, 1), num)))


def _joined(batches: list[Batch]) -> tuple[Tensor | None, Condition]:
    condition = batches[0].condition
    for batch in batches[1:]:
        condition = concatenate_conditions(condition, batch.condition)
    states = [batch.x for batch in batches if batch.x is not None]
    return (torch.cat(states) if states else None), condition


def _same_rows(whole: Tensor | None, labels: Condition, part: Tensor | None, theirs: Condition, skipped: int) -> bool:
    if whole is None or part is None:
        return whole is part and labels is theirs
    return torch.equal(whole[skipped:], part) and same(
        index_condition(labels, torch.arange(skipped, len(whole))), theirs
    )


class CodecContract(ComponentContract):
    """Checks of a codec.

    Attributes:
        image_shape: (C, H, W) of images it can encode.
        tolerance: greatest mean difference of a round trip, in grey values of 255; None: it is lossy without a bound.
            One that refuses uint8 images by a ``ConfigError`` is given float states, and has no round trip.
    """

    kind: ClassVar[str] = "codec"
    image_shape: ClassVar[tuple[int, int, int]] = (3, 32, 32)
    tolerance: ClassVar[float | None] = 12.0

    def test_encodes_to_float32_states(self) -> None:
        codec = self.codec()
        x = codec.encode(self.pictures(codec))
        self.expect_tensor(x, (_IMAGES, *x.shape[1:]), "states", torch.float32)
        told = codec.state_shape(self.image_shape)
        right = told is None or tuple(told) == tuple(x.shape[1:])
        self.expect(right, f"state_shape({self.image_shape}) = {tuple(x.shape[1:])}, or None", str(told))

    def test_decodes_to_uint8_images(self) -> None:
        codec = self.codec()
        images = self.pictures(codec)
        x = codec.encode(images)
        for states in (x, x.double(), 50 * x):
            decoded = codec.decode(states)
            good = decoded.dtype is torch.uint8 and len(decoded) == len(images) and decoded.ndim == images.ndim
            self.expect(good, f"uint8 images, {_IMAGES} of them", describe(decoded))
        if not images.is_floating_point():
            self.expect_tensor(codec.decode(x), images.shape, "images")

    def test_out_of_range_states_are_clamped(self) -> None:
        codec = self.codec()
        found = codec.decode(1.5 * codec.encode(torch.full_like(self._bounded(codec), 255)))
        self.expect(int(found.min()) > 200, "white from states beyond white", f"grey values down to {int(found.min())}")

    def test_round_trip(self) -> None:
        codec = self.codec()
        images = self._bounded(codec)
        error = float((codec.decode(codec.encode(images)).float() - images.float()).abs().mean())
        limit = float(self.tolerance or 0.0)
        advice = "Set tolerance of the contract for a codec that is lossy; None for one without a bound."
        self.expect(error <= limit, f"images back to {limit:g} grey values of 255 on average", f"{error:.1f}", advice)

    def test_moments_fit(self) -> None:
        codec = self.codec()
        images = self.pictures(codec)
        mean, std = codec.moments(images)
        shape = codec.encode(images).shape
        self.expect(mean.shape == shape, f"means {tuple(shape)}", describe(mean))
        if std is not None:
            self.expect(std.shape == shape and bool((std >= 0).all()), f"deviations {tuple(shape)} >= 0", describe(std))

    def test_decodes_with_gradient(self) -> None:
        """Floats that decode to the same images, with gradient; or a ``ConfigError``."""
        codec = self.codec()
        x = codec.encode(self.pictures(codec)).requires_grad_()
        try:
            found = codec.decode_with_gradient(x)
        except ConfigError as refusal:
            self.skip(str(refusal))
        error = float((found.detach().clamp(-1, 1) * 127.5 + 127.5 - codec.decode(x.detach()).float()).abs().max())
        self.expect(error <= 1, "the images of decode(), to a grey value", f"up to {error:.2g} off")
        self.expect(found.requires_grad, "images with gradient", "none")

    def test_same_image_same_state(self) -> None:
        codec = self.codec()
        images = self.pictures(codec)
        first = self.expect_repeatable(lambda: codec.encode(images), "encode()")
        self.expect_close(codec.encode(images[2:3]), first[2:3], 1e-3, "a state that does not depend on its batch")

    def codec(self) -> Codec:
        built: Codec = self.build()
        try:
            built.prepare()
        except FreeflowError as error:
            self.skip(str(error))
        return built

    def pictures(self, codec: Codec) -> Tensor:
        """uint8 images with smooth and sharp parts; float states for a codec that refuses those."""
        draws = draws_of(_IMAGES)
        c, h, w = self.image_shape
        ramp = torch.linspace(0, 1, w).expand(_IMAGES, c, h, w) * torch.linspace(0.2, 1, h).reshape(1, 1, h, 1)
        noise = 0.05 * draws.noise("image", self.image_shape)
        shade = torch.linspace(0.3, 1, _IMAGES).reshape(-1, 1, 1, 1)
        images = (255 * (shade * ramp + noise).clamp(0, 1)).round().to(torch.uint8)
        try:
            codec.encode(images[:1])
        except ConfigError:
            return draws.noise("state", self.image_shape)
        return images

    def _bounded(self, codec: Codec) -> Tensor:
        images = self.pictures(codec)
        if self.tolerance is None or images.is_floating_point():
            self.skip("it takes states, not images" if images.is_floating_point() else "it is lossy without a bound")
        return images
