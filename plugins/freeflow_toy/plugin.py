"""What this plugin offers."""

from __future__ import annotations

from freeflow_core.plugin import Component, hookimpl

freeflow_api = "1"


@hookimpl
def freeflow_teachers() -> list[Component]:
    """The exact Gaussian-mixture velocity."""
    return [
        Component(
            name="gaussian-mixture",
            target="freeflow_toy.gaussian_mixture:GaussianMixtureTeacher",
            config="freeflow_toy.config:GaussianMixtureConfig",
            summary="Exact velocity of a Gaussian mixture in any dimension, with classes; no weights, no training.",
            source="Closed form: conditional expectations of jointly Gaussian variables",
        )
    ]


@hookimpl
def freeflow_students() -> list[Component]:
    """Residual MLPs for vector states."""
    return [
        Component(
            name="mlp",
            target="freeflow_toy.mlp:MLPStudent",
            config="freeflow_toy.config:MLPStudentConfig",
            summary="Residual MLP that predicts the average velocity of small vector states.",
            source="Average velocity: Geng et al. 2025, arXiv 2505.13447",
        ),
        Component(
            name="mlp-policy",
            target="freeflow_toy.mlp:MLPPolicyStudent",
            config="freeflow_toy.config:MLPPolicyStudentConfig",
            summary="Residual MLP that emits a policy, a velocity field in closed form, for small vector states.",
            source="pi-Flow: Chen et al. 2025, arXiv 2510.14974",
        ),
    ]


@hookimpl
def freeflow_sources() -> list[Component]:
    """Exact samples of the mixture."""
    return [
        Component(
            name="gaussian-mixture",
            target="freeflow_toy.mixture_source:MixtureSource",
            config="freeflow_toy.config:MixtureSourceConfig",
            summary="Endless exact samples of a Gaussian mixture, with its classes; use with codec: states.",
        )
    ]


@hookimpl
def freeflow_codecs() -> list[Component]:
    """States as they are."""
    return [
        Component(
            name="states",
            target="freeflow_toy.mixture_source:StatesCodec",
            config="freeflow_toy.config:StatesConfig",
            summary="Float states pass unchanged: for sources that yield states instead of images.",
        )
    ]
