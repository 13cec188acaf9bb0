"""One small file a verb. Nothing here imports torch before a command needs it."""

from __future__ import annotations

import typer

from freeflow_cli.commands import (
    compare,
    config,
    distill,
    doctor,
    encode,
    evaluate,
    export,
    fetch,
    plugins,
    pretrain,
    sample,
    search,
    teacher,
)


def register_commands(app: typer.Typer) -> None:
    """Add every command, in the order of ``freeflow --help``."""
    app.command("distill")(distill.distill)
    app.command("pretrain")(pretrain.pretrain)
    app.command("compare")(compare.compare)
    app.command("sample")(sample.sample)
    app.command("search")(search.search)
    app.command("evaluate")(evaluate.evaluate)
    app.command("encode")(encode.encode)
    app.command("export")(export.export)
    app.command("fetch")(fetch.fetch)
    app.add_typer(plugins.application(), name="plugins")
    app.add_typer(config.application(), name="config")
    app.add_typer(teacher.application(), name="teacher")
    app.command("doctor")(doctor.doctor)
