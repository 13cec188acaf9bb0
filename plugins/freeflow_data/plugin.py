"""Sources and codecs that ship with freeflow."""

from __future__ import annotations

from collections.abc import Iterable

from freeflow_core.plugin import Component, hookimpl


@hookimpl
def freeflow_sources() -> Iterable[Component]:
    """The prior alone, and scikit-learn's digits."""
    return [
        Component(
            name="prior",
            target="freeflow_data.prior:PriorSource",
            config="freeflow_data.config:PriorConfig",
            summary="No data at all: training starts from noise and conditions.",
        ),
        Component(
            name="digits",
            target="freeflow_data.digits:DigitsSource",
            config="freeflow_data.config:DigitsConfig",
            summary="1797 handwritten digits, 8x8 grey, 10 classes, stratified held-out split; no download.",
            source="scikit-learn load_digits; UCI 80, Alpaydin and Kaynak 1998",
        ),
    ]


@hookimpl
def freeflow_codecs() -> Iterable[Component]:
    """Pixels as states."""
    return [
        Component(
            name="pixels",
            target="freeflow_data.pixels:PixelCodec",
            config="freeflow_data.config:PixelsConfig",
            summary="uint8 [0, 255] <-> float [-1, 1], exact both ways.",
        ),
    ]
