"""One file a concept. Nothing here imports torch before a command needs it."""

from __future__ import annotations

import typer

from freeflow_cli.commands import (
    checks,
    compare,
    encode,
    evaluate,
    plugins,
    sample,
    search,
    training,
    weights,
)


def register_commands(app: typer.Typer) -> None:
    """Add every command, in the order of ``freeflow --help``."""
    app.command("distill")(training.distill)
    app.command("pretrain")(training.pretrain)
    app.command("compare")(compare.compare)
    app.command("sample")(sample.sample)
    app.command("search")(search.search)
    app.command("evaluate")(evaluate.evaluate)
    app.command("encode")(encode.encode)
    app.command("export")(weights.export)
    app.command("fetch")(weights.fetch)
    app.add_typer(plugins.application(), name="plugins")
    app.add_typer(training.config_application(), name="config")
    app.add_typer(checks.teacher_application(), name="teacher")
    app.command("doctor")(checks.doctor)
