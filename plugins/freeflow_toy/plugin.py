"""What this plugin offers."""

from __future__ import annotations

from freeflow_core.plugin import Component, hookimpl


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
    """A residual MLP for vector states."""
    return [
        Component(
            name="mlp",
            target="freeflow_toy.mlp_student:MLPStudent",
            config="freeflow_toy.config:MLPStudentConfig",
            summary="Residual MLP that predicts the average velocity of small vector states.",
            source="Average velocity: Geng et al. 2025, arXiv 2505.13447",
        )
    ]
