"""Hooks of the TensorBoard plugin."""

from freeflow_core.plugin import Component, hookimpl

freeflow_api = "1"


@hookimpl
def freeflow_trackers() -> list[Component]:
    """The TensorBoard tracker."""
    return [Component("tensorboard", ".tracker:TensorboardTracker", ".config:TensorboardConfig")]
