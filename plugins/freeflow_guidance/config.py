"""Options. No torch here."""

from pydantic import Field

from freeflow_core.config.component import ComponentChoice, ComponentConfig


class AutoguidanceConfig(ComponentConfig):
    """Any teacher, guided away from a weaker one instead of from its own null class.

    Source: Karras et al. 2024, arXiv 2406.02507
    """

    main: ComponentChoice = Field(description="The teacher, by name or as {name: ..., option: ...}.")
    guide: ComponentChoice
    """The weaker teacher: the same family and data, smaller or trained more briefly."""
