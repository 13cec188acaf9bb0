"""Hooks of the Weights & Biases plugin."""

from freeflow_core.plugin import Component, hookimpl

freeflow_api = "1"


@hookimpl
def freeflow_trackers() -> list[Component]:
    """The Weights & Biases tracker."""
    return [Component("wandb", ".tracker:WandbTracker", ".config:WandbConfig")]
