"""A plugin that brings everything a run configuration needs; nothing of it is ever built."""

from typing import Any

import typer

from freeflow_core.plugin import Component, Preset, hookimpl

NOTHING, RICH = "cli_example.config:Nothing", "cli_example.config:Rich"


def _component(name: str, config: str = NOTHING, source: str = "") -> Component:
    return Component(name, "cli_example.absent:Absent", config, f"The {name} of the tests.", source)


@hookimpl
def freeflow_teachers() -> list[Component]:
    return [_component("wise", RICH, "Somebody 1999"), _component("stern")]


@hookimpl
def freeflow_students() -> list[Component]:
    return [_component("eager"), _component("lazy")]


@hookimpl
def freeflow_objectives() -> list[Component]:
    return [_component("agree", RICH)]


@hookimpl
def freeflow_samplers() -> list[Component]:
    return [_component("heun")]


@hookimpl
def freeflow_codecs() -> list[Component]:
    return [_component("pixels")]


@hookimpl
def freeflow_sources() -> list[Component]:
    return [_component("prior"), _component("pictures")]


@hookimpl
def freeflow_trackers() -> list[Component]:
    return [_component("mlflow")]


@hookimpl
def freeflow_presets() -> list[Preset]:
    return [
        Preset("digits", "cli_example:presets/digits.yaml", "distill", "Small.", "score 1.5, measured on a test"),
        Preset("digits", "cli_example:presets/digits-teacher.yaml", "pretrain", "Its teacher."),
    ]


@hookimpl
def freeflow_commands(app: Any) -> None:
    @app.command("greet")
    def greet() -> None:
        """Say hello."""
        typer.echo("hello from a plugin")
