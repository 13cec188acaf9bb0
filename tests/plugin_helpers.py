"""Plugins made on the spot."""

from types import SimpleNamespace

from freeflow_core.plugin import hookimpl


def plugin(**hooks):
    """A plugin of ``freeflow_<name>`` hooks: each what is called, or what is returned."""
    calls = {name: value if callable(value) else lambda value=value: value for name, value in hooks.items()}
    return SimpleNamespace(**{f"freeflow_{name}": hookimpl(call) for name, call in calls.items()})
