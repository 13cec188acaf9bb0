"""What a codec promises."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from freeflow_core.errors import ConfigError, FreeflowError
from freeflow_core.interfaces import Codec
from freeflow_core.testing.contracts.base import ComponentContract, draws_of
from freeflow_core.types import describe

_ROWS = 4


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
        self.expect_tensor(x, (_ROWS, *x.shape[1:]), "states", torch.float32)
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
            self.expect(good, f"uint8 images, {_ROWS} of them", describe(decoded))
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

    def test_same_image_same_state(self) -> None:
        codec = self.codec()
        images = self.pictures(codec)
        first = self.expect_repeatable(lambda: codec.encode(images), "encode()")
        self.expect_close(codec.encode(images[2:3]), first[2:3], 1e-3, "a state that does not depend on its batch")

    def codec(self) -> Codec:
        """The codec, with its networks loaded."""
        built: Codec = self.build()
        try:
            built.prepare()
        except FreeflowError as error:
            self.skip(str(error))
        return built

    def pictures(self, codec: Codec) -> Tensor:
        """uint8 images with smooth and sharp parts; float states for a codec that refuses those."""
        draws = draws_of(_ROWS)
        c, h, w = self.image_shape
        ramp = torch.linspace(0, 1, w).expand(_ROWS, c, h, w) * torch.linspace(0.2, 1, h).reshape(1, 1, h, 1)
        noise = 0.05 * draws.noise("image", self.image_shape)
        shade = torch.linspace(0.3, 1, _ROWS).reshape(-1, 1, 1, 1)
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
