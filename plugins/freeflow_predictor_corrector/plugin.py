"""Registers FreeFlow's objectives: prediction, correction, and their union."""

from __future__ import annotations

from collections.abc import Iterable

from freeflow_core.plugin import Component, hookimpl

freeflow_api = "1"


@hookimpl
def freeflow_objectives() -> Iterable[Component]:
    """The three data-free objectives of this plugin."""
    return [
        Component("freeflow", ".freeflow:FreeFlow", ".config:FreeFlowConfig"),
        Component("freeflow-prediction", ".freeflow:FreeFlowPrediction", ".config:PredictionConfig"),
        Component("freeflow-correction", ".freeflow:FreeFlowCorrection", ".config:CorrectionConfig"),
    ]
