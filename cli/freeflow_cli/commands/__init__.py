"""One file a concept. Nothing here imports torch before a command needs it."""

import typer

from freeflow_cli.commands import checks, compare, evaluate, plugins, plugins_new, sample, training, view, weights


def register_commands(app: typer.Typer) -> None:
    """Add every command, in the order of ``freeflow --help``."""
    app.command("distill")(training.distill)
    app.command("pretrain")(training.pretrain)
    app.command("compare")(compare.compare)
    app.command("sample")(sample.sample)
    app.command("search")(evaluate.search)
    app.command("evaluate")(evaluate.evaluate)
    app.command("view")(view.view)
    app.command("encode")(sample.encode)
    app.command("export")(weights.export)
    app.command("push")(weights.push)
    app.command("fetch")(weights.fetch)
    group = _add_group(app, "plugins", "Look at plugins, components and presets.")
    group.command("list")(plugins.list_plugins)
    group.command("show")(plugins.show_plugin)
    group.command("new")(plugins_new.new_plugin)
    group.command("check")(plugins.check_plugin)
    _add_group(app, "config", "Look at run configurations.").command("show")(training.show)
    _add_group(app, "teacher", "Look at teachers.").command("check")(checks.check)
    app.command("doctor")(checks.doctor)


def _add_group(app: typer.Typer, name: str, help_text: str) -> typer.Typer:
    group = typer.Typer(help=help_text, no_args_is_help=True)
    group.callback()(lambda: None)  # without it a group of one command would be that command
    app.add_typer(group, name=name)
    return group
