"""Published objectives, one file each."""

from __future__ import annotations

from collections.abc import Iterable

from freeflow_core.plugin import Component, hookimpl

freeflow_api = "1"


@hookimpl
def freeflow_objectives() -> Iterable[Component]:
    """Flow matching, which trains a teacher from data, and the objectives that train a student."""
    return [
        Component(
            name="flow-matching",
            target="freeflow_baselines.flow_matching:FlowMatching",
            config="freeflow_baselines.config:FlowMatchingConfig",
            summary="Instantaneous velocity from data: trains a teacher.",
            source="Lipman et al. 2022, arXiv 2210.02747; Ma et al. 2024 (SiT), arXiv 2401.08740",
        ),
        Component(
            name="consistency",
            target="freeflow_baselines.consistency:Consistency",
            config="freeflow_baselines.config:ConsistencyConfig",
            summary="Discrete consistency: neighbours on a trajectory name one end point; teacher step, EMA target.",
            source="Song et al. 2023, arXiv 2303.01469",
        ),
        Component(
            name="continuous-consistency",
            target="freeflow_baselines.continuous_consistency:ContinuousConsistency",
            config="freeflow_baselines.config:ContinuousConsistencyConfig",
            summary="Continuous consistency (sCM): normalised tangent with warm-up and a learned weight of time.",
            source="Lu and Song 2024, arXiv 2410.11081",
        ),
        Component(
            name="facm",
            target="freeflow_baselines.facm:FACM",
            config="freeflow_baselines.config:FACMConfig",
            summary="Continuous consistency anchored by flow matching on the same network.",
            source="Peng et al. 2025, arXiv 2507.03738",
        ),
        Component(
            name="shortcut",
            target="freeflow_baselines.shortcut:Shortcut",
            config="freeflow_baselines.config:ShortcutConfig",
            summary="Shortcut models: one step equals two of half its size; the rest is flow matching.",
            source="Frans et al. 2024, arXiv 2410.12557",
        ),
        Component(
            name="lagrangian",
            target="freeflow_baselines.lagrangian:Lagrangian",
            config="freeflow_baselines.config:LagrangianConfig",
            summary="Lagrangian map distillation: dX/ds follows the velocity at X; from data, or data-free.",
            source="Boffi et al. 2024, arXiv 2406.07507; Boffi et al. 2025, arXiv 2505.18825",
        ),
        Component(
            name="eulerian",
            target="freeflow_baselines.eulerian:Eulerian",
            config="freeflow_baselines.config:EulerianConfig",
            summary="Eulerian map distillation: X stays while its start slides along the path; AYF-EMD by options.",
            source="Boffi et al. 2024, arXiv 2406.07507; Sabour et al. 2025 (AYF), arXiv 2506.14603",
        ),
        Component(
            name="pi-flow",
            target="freeflow_baselines.pi_flow:PiFlow",
            config="freeflow_baselines.config:PiFlowConfig",
            summary="A policy in closed form imitates the teacher where it leads; for policy students.",
            source="pi-Flow: Chen et al. 2025, arXiv 2510.14974",
        ),
        Component(
            name="imm",
            target="freeflow_baselines.imm:IMM",
            config="freeflow_baselines.config:IMMConfig",
            summary="Inductive moment matching: a kernel compares jumps from two noise levels; from data.",
            source="IMM: Zhou et al. 2025, arXiv 2503.07565",
        ),
        Component(
            name="score-distillation",
            target="freeflow_baselines.score_distillation:ScoreDistillation",
            config="freeflow_baselines.config:ScoreDistillationConfig",
            summary="VSD and DMD: one-step samples follow the teacher's score less their own; without data.",
            source="VSD: Wang et al. 2023, arXiv 2305.16213; DMD: Yin et al. 2023, arXiv 2311.18828",
        ),
        Component(
            name="pairs",
            target="freeflow_baselines.pairs:PairRegression",
            config="freeflow_baselines.config:PairsConfig",
            summary="Knowledge distillation or rectified flow on pairs of noise and the teacher's end point.",
            source="Luhman & Luhman 2021, arXiv 2101.02388; Liu et al. 2022, arXiv 2209.03003",
        ),
        Component(
            name="progressive",
            target="freeflow_baselines.progressive:Progressive",
            config="freeflow_baselines.config:ProgressiveConfig",
            summary="One step learns to replace two of its predecessor, round by round.",
            source="Salimans & Ho 2022, arXiv 2202.00512",
        ),
    ]
