"""How components are made from their configuration."""

from abc import ABC
from typing import Any, Self


class Buildable(ABC):  # noqa: B024 (the abstract methods are its subclasses')
    """Anything a :class:`freeflow_core.plugin.Component` can point to."""

    @classmethod
    def from_config(cls, config: Any, context: Any) -> Self:
        """Build from validated options, an instance of the component's configuration class.

        A component that needs more than ``config`` overrides this, and declares ``config`` as its own configuration
        class and ``context`` as :class:`freeflow_core.interfaces.BuildContext`. Raises ``ConfigError`` for options
        that do not fit the context.
        """
        make: Any = cls
        built: Self = make(config)
        return built
