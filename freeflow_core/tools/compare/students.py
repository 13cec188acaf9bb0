"""The student that an objective can train, when the base run's own is of another class."""

from __future__ import annotations

from typing import Any

from freeflow_core.config import ComponentChoice, ComponentConfig, RunConfig
from freeflow_core.config.load import resolve_choice
from freeflow_core.errors import ConfigError, PluginError
from freeflow_core.plugin import Registry


def fitting_student(registry: Registry, run: RunConfig, requires: type[Any]) -> ComponentChoice:
    """The run's own student if it is a ``requires``; else the one student of that class, first in the same plugin.

    The options that both have, such as width and depth, are taken along, so that the networks stay comparable.

    Raises:
        ConfigError: no student of that class, or several to choose from.
    """
    if issubclass(registry.component("student", run.student.name).load_target(), requires):
        return run.student
    fitting = [name for name in registry.components("student") if _is_a(registry, name, requires)]
    plugin = registry.origin("student", run.student.name).name
    chosen = [name for name in fitting if registry.origin("student", name).name == plugin] or fitting
    if len(chosen) != 1:
        found = f"several are: {', '.join(chosen)}" if chosen else "none is offered"
        raise ConfigError(
            f"The objective {run.objective.name!r} trains a {requires.__name__}, which the student "
            f"{run.student.name!r} is not, and {found}. Choose one with "
            f"--set-for {run.objective.name}:student=NAME, or leave the objective out."
        )
    return _like(registry, run.student, chosen[0])


def _is_a(registry: Registry, name: str, requires: type[Any]) -> bool:
    try:
        return issubclass(registry.component("student", name).load_target(), requires)
    except PluginError:  # a student whose own requirements are not installed
        return False


def _like(registry: Registry, student: ComponentChoice, name: str) -> ComponentChoice:
    known = registry.component("student", name).load_config_class().model_fields
    options = student.options
    given = options.model_dump(exclude_unset=True) if isinstance(options, ComponentConfig) else options
    kept = {key: value for key, value in given.items() if key in known}
    return resolve_choice(registry, "student", ComponentChoice(name=name, options=kept), "student")
