"""Registers FreeFlow's objectives: prediction, correction, and their union."""

from __future__ import annotations

from collections.abc import Iterable

from freeflow_core.plugin import Component, hookimpl

freeflow_api = "1"

_SOURCE = "Tong, Ma, Xie, Jaakkola: Flow Map Distillation Without Data, arXiv 2511.19428"


@hookimpl
def freeflow_objectives() -> Iterable[Component]:
    """The three data-free objectives of this plugin."""
    return [
        Component(
            name="freeflow",
            target="freeflow_predictor_corrector.freeflow:FreeFlow",
            config="freeflow_predictor_corrector.config:FreeFlowConfig",
            summary="FreeFlow, data-free: prediction and correction on one batch",
            source=_SOURCE,
        ),
        Component(
            name="freeflow-prediction",
            target="freeflow_predictor_corrector.freeflow:FreeFlowPrediction",
            config="freeflow_predictor_corrector.config:PredictionConfig",
            summary="FreeFlow's prediction alone: the student's own path follows the teacher's field",
            source=_SOURCE,
        ),
        Component(
            name="freeflow-correction",
            target="freeflow_predictor_corrector.freeflow:FreeFlowCorrection",
            config="freeflow_predictor_corrector.config:CorrectionConfig",
            summary="FreeFlow's correction alone: the student's samples are pulled to the teacher's distribution",
            source=_SOURCE,
        ),
    ]
