"""Options. No torch here."""

from __future__ import annotations

from pydantic import Field

from freeflow_core.config.component import ComponentChoice, ComponentConfig


class AutoguidanceConfig(ComponentConfig):
    """Options of a teacher guided by a weaker one."""

    main: ComponentChoice = Field(description="The teacher, by name or as {name: ..., option: ...}.")
    guide: ComponentChoice = Field(
        description="The weaker teacher: the same family and data, smaller or trained more briefly."
    )
