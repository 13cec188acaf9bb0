"""Evaluators (Fréchet, kernel and energy distance, accuracy, spread, fidelity to the teacher) and verifiers."""

from collections.abc import Iterable

from freeflow_core.plugin import Component, WeightFile, hookimpl

freeflow_api = "1"

INCEPTION = WeightFile(
    "inception",
    "Inception-v3 as clean-fid takes its features, for FID and KID",
    "inception-2015-12-05.pt",
    url="https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
    source="https://github.com/GaParmar/clean-fid",
)


@hookimpl
def freeflow_evaluators() -> Iterable[Component]:
    """The evaluators of this plugin."""
    return [
        Component("frechet", ".frechet:FrechetEvaluator", ".config:FrechetConfig"),
        Component("kernel", ".distance:KernelEvaluator", ".config:KernelConfig"),
        Component("energy-distance", ".distance:EnergyDistanceEvaluator", ".config:EnergyDistanceConfig"),
        Component("class-accuracy", ".classes:ClassAccuracyEvaluator", ".config:ClassAccuracyConfig"),
        Component("spread", ".classes:SpreadEvaluator", ".config:SpreadConfig"),
        Component("fidelity", ".fidelity:FidelityEvaluator", ".config:FidelityConfig"),
    ]


@hookimpl
def freeflow_weights() -> Iterable[WeightFile]:
    """The network of FID and KID."""
    return [INCEPTION]


@hookimpl
def freeflow_verifiers() -> Iterable[Component]:
    """What best-of-N search can rank by."""
    return [
        Component("class-probability", ".verifiers:ClassProbability", ".config:ClassProbabilityConfig"),
        Component("feature-centroid", ".verifiers:FeatureCentroid", ".config:FeatureCentroidConfig"),
        Component("density-ratio", ".verifiers:DensityRatio", ".config:DensityRatioConfig"),
        Component("callable", ".verifiers:CallableVerifier", ".config:CallableVerifierConfig"),
    ]


@hookimpl
def freeflow_distances() -> Iterable[Component]:
    """For losses."""
    return [Component("perceptual", ".perceptual:PerceptualDistance", ".config:PerceptualConfig")]
