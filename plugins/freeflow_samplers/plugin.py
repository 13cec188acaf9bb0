"""What this plugin offers."""

from freeflow_core.plugin import Component, hookimpl

freeflow_api = "1"


@hookimpl
def freeflow_samplers() -> list[Component]:
    """Three velocity samplers, two flow-map samplers, one of both."""
    return [
        Component("euler", ".velocity:EulerSampler", ".config:EulerConfig"),
        Component("heun", ".velocity:HeunSampler", ".config:HeunConfig"),
        Component("adaptive", ".velocity:AdaptiveSampler", ".config:AdaptiveConfig"),
        Component("one-step", ".flow_map:OneStepSampler", ".config:OneStepConfig"),
        Component("few-step", ".flow_map:FewStepSampler", ".config:FewStepConfig"),
        Component("student-then-teacher", ".flow_map:StudentThenTeacherSampler", ".config:StudentThenTeacherConfig"),
    ]
