"""Registers MeanFlow and improved MeanFlow."""

from __future__ import annotations

from collections.abc import Iterable

from freeflow_core.plugin import Component, hookimpl

freeflow_api = "1"


@hookimpl
def freeflow_objectives() -> Iterable[Component]:
    """The two objectives of this plugin."""
    return [
        Component(
            name="meanflow",
            target="freeflow_meanflow.meanflow:MeanFlow",
            config="freeflow_meanflow.config:MeanFlowConfig",
            summary="MeanFlow: the average velocity obeys its identity on noised data; velocity from teacher or data.",
            source="Geng et al. 2025, arXiv 2505.13447",
        ),
        Component(
            name="improved-meanflow",
            target="freeflow_meanflow.improved:ImprovedMeanFlow",
            config="freeflow_meanflow.config:ImprovedMeanFlowConfig",
            summary="Improved MeanFlow: from data alone, with the network's own velocity as the tangent.",
            source="Geng et al. 2025, arXiv 2512.02012",
        ),
    ]
