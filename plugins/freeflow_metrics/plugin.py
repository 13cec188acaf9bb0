"""Evaluators (Fréchet, kernel and energy distance, accuracy, spread, fidelity to the teacher) and verifiers."""

from __future__ import annotations

from collections.abc import Iterable

from freeflow_core.plugin import Component, hookimpl

freeflow_api = "1"


@hookimpl
def freeflow_evaluators() -> Iterable[Component]:
    """The evaluators of this plugin."""
    return [
        Component(
            "frechet",
            "freeflow_metrics.frechet:FrechetEvaluator",
            "freeflow_metrics.config:FrechetConfig",
            "Fréchet distance (FID with Inception features) to held-out data, the teacher, stored statistics",
            "Heusel et al. 2017, arXiv 1706.08500; clean-fid, Parmar et al. 2022, arXiv 2104.11222",
        ),
        Component(
            "kernel",
            "freeflow_metrics.kernel:KernelEvaluator",
            "freeflow_metrics.config:KernelConfig",
            "Kernel distance (KID with Inception features) to held-out data and the teacher",
            "Binkowski et al. 2018, arXiv 1801.01401; clean-fid, Parmar et al. 2022, arXiv 2104.11222",
        ),
        Component(
            "energy-distance",
            "freeflow_metrics.energy:EnergyDistanceEvaluator",
            "freeflow_metrics.config:EnergyDistanceConfig",
            "Energy distance between raw states to held-out data and the teacher: vectors and small images",
            "Székely & Rizzo 2013, J. Statistical Planning and Inference 143(8)",
        ),
        Component(
            "class-accuracy",
            "freeflow_metrics.classes:ClassAccuracyEvaluator",
            "freeflow_metrics.config:ClassAccuracyConfig",
            "Share of samples a classifier takes for the class they were asked to be",
        ),
        Component(
            "spread",
            "freeflow_metrics.classes:SpreadEvaluator",
            "freeflow_metrics.config:SpreadConfig",
            "Per-pixel standard deviation within classes, absolute and relative to the teacher: shows collapse",
        ),
        Component(
            "fidelity",
            "freeflow_metrics.fidelity:FidelityEvaluator",
            "freeflow_metrics.config:FidelityConfig",
            "Error to the teacher's end points from the same noise, and the residual of the flow-map identity",
            "Tong et al. 2025, arXiv 2511.19428",
        ),
    ]


@hookimpl
def freeflow_verifiers() -> Iterable[Component]:
    """What best-of-N search can rank by."""
    return [
        Component(
            "class-probability",
            "freeflow_metrics.verifiers:ClassProbability",
            "freeflow_metrics.config:ClassProbabilityConfig",
            "Probability that a classifier gives the class asked for",
        ),
        Component(
            "feature-centroid",
            "freeflow_metrics.verifiers:FeatureCentroid",
            "freeflow_metrics.config:FeatureCentroidConfig",
            "Nearness to the mean features of the real images of the class",
        ),
        Component(
            "callable",
            "freeflow_metrics.verifiers:CallableVerifier",
            "freeflow_metrics.config:CallableVerifierConfig",
            "A function of your own, as module:function",
        ),
    ]
