"""What this plugin offers."""

from collections.abc import Iterable

from freeflow_core.plugin import Component, hookimpl

freeflow_api = "1"


@hookimpl
def freeflow_teachers() -> Iterable[Component]:
    """Autoguidance, around any two teachers."""
    return [Component("autoguidance", ".autoguidance:AutoguidedTeacher", ".config:AutoguidanceConfig")]
