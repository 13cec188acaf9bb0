"""What this plugin offers."""

from __future__ import annotations

from freeflow_core.plugin import Component, hookimpl

freeflow_api = "1"


@hookimpl
def freeflow_samplers() -> list[Component]:
    """Three velocity samplers, two flow-map samplers, one of both."""
    return [
        Component(
            name="euler",
            target="freeflow_samplers.velocity:EulerSampler",
            config="freeflow_samplers.config:EulerConfig",
            summary="Euler steps along the teacher's velocity; one evaluation per step.",
            source="SiT, Ma et al. 2024, arXiv 2401.08740",
        ),
        Component(
            name="heun",
            target="freeflow_samplers.velocity:HeunSampler",
            config="freeflow_samplers.config:HeunConfig",
            summary="Heun's method, second order; two evaluations per step.",
            source="Karras et al. 2022 (EDM), arXiv 2206.00364, algorithm 1",
        ),
        Component(
            name="adaptive",
            target="freeflow_samplers.velocity:AdaptiveSampler",
            config="freeflow_samplers.config:AdaptiveConfig",
            summary="Dormand-Prince 5(4) to a tolerance (torchdiffeq).",
            source="Dormand & Prince 1980; torchdiffeq",
        ),
        Component(
            name="one-step",
            target="freeflow_samplers.flow_map:OneStepSampler",
            config="freeflow_samplers.config:OneStepConfig",
            summary="One jump of the student from noise to data.",
            source="FreeFlow, Tong et al. 2025, arXiv 2511.19428",
        ),
        Component(
            name="few-step",
            target="freeflow_samplers.flow_map:FewStepSampler",
            config="freeflow_samplers.config:FewStepConfig",
            summary="Several jumps of a student trained from any time, deterministic or with fresh noise.",
            source="Song et al. 2023, arXiv 2303.01469, algorithm 1; Geng et al. 2025, arXiv 2505.13447",
        ),
        Component(
            name="student-then-teacher",
            target="freeflow_samplers.flow_map:StudentThenTeacherSampler",
            config="freeflow_samplers.config:StudentThenTeacherConfig",
            summary="One student jump, then teacher steps: more compute for students trained from noise alone.",
            source="FreeFlow, Tong et al. 2025, arXiv 2511.19428",
        ),
    ]
