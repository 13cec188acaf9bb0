"""Plugin registry: components are declared as strings and imported only when built."""

from freeflow_core.plugin.component import KINDS, Component, Preset, WeightFile
from freeflow_core.plugin.manager import API_VERSION, Manager
from freeflow_core.plugin.registry import Registry
from freeflow_core.plugin.spec import hookimpl, hookspec

__all__ = ["API_VERSION", "KINDS", "Component", "Manager", "Preset", "Registry", "WeightFile", "hookimpl", "hookspec"]
