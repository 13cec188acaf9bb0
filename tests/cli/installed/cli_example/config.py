"""Options of the components that the command line is tested with."""

from typing import Literal

from pydantic import Field, PositiveInt

from freeflow_core.config import ComponentConfig


class Nothing(ComponentConfig):
    """No options."""


class Inner(ComponentConfig):
    """A nested section."""

    depth: int = Field(2, ge=1, le=9, description="How deep.")


class Rich(ComponentConfig):
    """Every sort of option."""

    power: float = Field(0.5, ge=0, lt=1, description="How strong [in brackets].")
    mode: Literal["near", "far"] = Field("near", description="Which way.")
    limit: PositiveInt | None = Field(None, description="At most this many.")
    names: tuple[str, ...] = Field((), description="Some names.")
    inner: Inner = Field(default_factory=Inner)
