"""What this plugin offers."""

from __future__ import annotations

from collections.abc import Iterable

from freeflow_core.plugin import Component, hookimpl

freeflow_api = "1"


@hookimpl
def freeflow_teachers() -> Iterable[Component]:
    """Autoguidance, around any two teachers."""
    return [
        Component(
            name="autoguidance",
            target="freeflow_guidance.autoguidance:AutoguidedTeacher",
            config="freeflow_guidance.config:AutoguidanceConfig",
            summary="Any teacher, guided away from a weaker one instead of from its own null class",
            source="Karras et al. 2024, arXiv 2406.02507",
        ),
    ]
