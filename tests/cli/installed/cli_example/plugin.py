"""A plugin that brings everything a run configuration needs; nothing of it is ever built."""

import typer

from freeflow_core.plugin import Component, Preset, hookimpl

NOTHING, RICH = "cli_example.config:Nothing", "cli_example.config:Rich"


def _component(name, config=NOTHING, source=""):
    return Component(name, "cli_example.absent:Absent", config, f"The {name} of the tests.", source)


def _offers(*components):
    return hookimpl(lambda: list(components))


freeflow_teachers = _offers(_component("wise", RICH, "Somebody 1999"), _component("stern"))
freeflow_students = _offers(_component("eager"), _component("lazy"))
freeflow_objectives = _offers(_component("agree", RICH))
freeflow_samplers, freeflow_codecs = _offers(_component("heun")), _offers(_component("pixels"))
freeflow_sources = _offers(_component("prior"), _component("pictures"))
freeflow_trackers = _offers(_component("mlflow"))


@hookimpl
def freeflow_presets():
    return [
        Preset("digits", "cli_example:presets/digits.yaml", "distill", "Small.", "score 1.5, measured on a test"),
        Preset("mnist", "cli_example:presets/mnist.yaml", "distill", "The default."),
        Preset("any-teacher", "cli_example:presets/digits.yaml", "distill", "For a teacher without one."),
        Preset("digits", "cli_example:presets/digits-teacher.yaml", "pretrain", "Its teacher."),
    ]


@hookimpl
def freeflow_commands(app):
    @app.command("greet")
    def greet():
        """Say hello."""
        typer.echo("hello from a plugin")
