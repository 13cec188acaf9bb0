"""Registers FreeFlow's objectives: prediction, correction, and their union."""

from collections.abc import Iterable

from freeflow_core.plugin import Component, Preset, hookimpl

freeflow_api = "1"


@hookimpl
def freeflow_objectives() -> Iterable[Component]:
    """The three data-free objectives of this plugin."""
    return [
        Component("freeflow", ".freeflow:FreeFlow", ".config:FreeFlowConfig"),
        Component("freeflow-prediction", ".freeflow:FreeFlowPrediction", ".config:PredictionConfig"),
        Component("freeflow-correction", ".freeflow:FreeFlowCorrection", ".config:CorrectionConfig"),
    ]


@hookimpl
def freeflow_presets() -> Iterable[Preset]:
    """The run of a teacher that has none of its own."""
    return [
        Preset(
            name="any-teacher",
            resource="freeflow_predictor_corrector:presets/any-teacher.yaml",
            command="distill",
            summary="FreeFlow for a teacher without a preset; evaluators that fit its states",
        )
    ]
