"""Options of the sources and codecs."""

from __future__ import annotations

from pydantic import Field

from freeflow_core.config import ComponentConfig


class PriorConfig(ComponentConfig):
    """The prior has no options."""


class PixelsConfig(ComponentConfig):
    """The pixel codec has no options."""


class DigitsConfig(ComponentConfig):
    """Options of the digits source."""

    held_out: int = Field(
        597, ge=0, description="Images kept from training, each class in proportion; 0: train on all 1797."
    )
    split_seed: int = Field(0, ge=0, lt=2**63, description="Which images are held out; keep it to compare runs.")
    seed: int = Field(0, ge=0, lt=2**63, description="Order in which training images are visited.")
