"""Registers MeanFlow and improved MeanFlow."""

from collections.abc import Iterable

from freeflow_core.plugin import Component, hookimpl

freeflow_api = "1"


@hookimpl
def freeflow_objectives() -> Iterable[Component]:
    """The two objectives of this plugin."""
    return [
        Component("meanflow", ".meanflow:MeanFlow", ".config:MeanFlowConfig"),
        Component("improved-meanflow", ".improved:ImprovedMeanFlow", ".config:ImprovedMeanFlowConfig"),
    ]
