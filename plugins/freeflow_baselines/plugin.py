"""Published objectives, one file each."""

from collections.abc import Iterable

from freeflow_core.plugin import Component, hookimpl

freeflow_api = "1"


@hookimpl
def freeflow_objectives() -> Iterable[Component]:
    """Flow matching, which trains a teacher from data, and the objectives that train a student."""
    return [
        Component("flow-matching", ".flow_matching:FlowMatching", ".config:FlowMatchingConfig"),
        Component("consistency", ".consistency:Consistency", ".config:ConsistencyConfig"),
        Component(
            "continuous-consistency",
            ".continuous_consistency:ContinuousConsistency",
            ".config:ContinuousConsistencyConfig",
        ),
        Component("facm", ".facm:FACM", ".config:FACMConfig"),
        Component("shortcut", ".shortcut:Shortcut", ".config:ShortcutConfig"),
        Component("lagrangian", ".lagrangian:Lagrangian", ".config:LagrangianConfig"),
        Component("eulerian", ".eulerian:Eulerian", ".config:EulerianConfig"),
        Component("pi-flow", ".pi_flow:PiFlow", ".config:PiFlowConfig"),
        Component("imm", ".imm:IMM", ".config:IMMConfig"),
        Component("score-distillation", ".score_distillation:ScoreDistillation", ".config:ScoreDistillationConfig"),
        Component("pairs", ".pairs:PairRegression", ".config:PairsConfig"),
        Component("progressive", ".progressive:Progressive", ".config:ProgressiveConfig"),
    ]
