"""What this plugin offers: the tracker, and the command that sends what could not be sent during a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from freeflow_core.errors import ConfigError
from freeflow_core.plugin import Component, hookimpl

if TYPE_CHECKING:
    from freeflow_mlflow.config import MlflowConfig

freeflow_api = "1"


@hookimpl
def freeflow_trackers() -> list[Component]:
    """The MLflow tracker."""
    return [Component("mlflow", ".tracker:MlflowTracker", ".config:MlflowConfig")]


@hookimpl
def freeflow_commands(app: Any) -> None:
    """Add ``freeflow mlflow-sync`` to the Typer application."""
    app.command("mlflow-sync")(mlflow_sync)


def mlflow_sync(
    run_folder: Annotated[
        Path, typer.Argument(help="Folder of a run, or of a comparison, of which MLflow has not everything.")
    ],
    uri: Annotated[str | None, typer.Option(help="Tracking URI; without it, where the run was meant to go.")] = None,
) -> None:
    """Send to MLflow what it lacks of a run: the server was away, or the run was killed."""
    from freeflow_core.tracking import MASK, Sent, send_unsent
    from freeflow_mlflow.tracker import MlflowTracker

    if not run_folder.is_dir():
        raise ConfigError(f"Expected a run folder; {run_folder} is not a folder.")
    total, num_runs = Sent(), 0
    files = (run_folder / "run.json", *sorted(run_folder.glob("*/run.json")))
    if not (folders := [file.parent for file in files if file.is_file()]):
        raise ConfigError(f"Expected a run folder; {run_folder} holds no run.json.")
    for folder in folders:
        for config in _stores(folder, uri):
            if f"://{MASK}@" in (config.uri or ""):
                raise ConfigError(
                    f"The run was to go to {config.uri}, and credentials are not kept on disk. Give the whole address "
                    "with --uri."
                )
            if sent := send_unsent(MlflowTracker(config), folder):
                total.metrics, total.artifacts = total.metrics + sent.metrics, total.artifacts + sent.artifacts
                total.skipped += sent.skipped
                num_runs += 1
    for text in total.skipped:
        typer.echo(f"Skipped: {text}", err=True)
    if num_runs:
        typer.echo(f"Sent {total.metrics} metric values and {total.artifacts} images and files of {num_runs} run(s).")
    else:
        typer.echo(f"Nothing is waiting in {run_folder}.")


def _stores(folder: Path, uri: str | None) -> list[MlflowConfig]:
    """Where a run was to go; or to ``uri``, and then otherwise as it was to go first."""
    from freeflow_core.tracking import kept_options
    from freeflow_mlflow.config import MlflowConfig

    kept = [MlflowConfig(**options["mlflow"]) for options in kept_options(folder) if "mlflow" in options]
    if uri is None or not (folder / "run.json").is_file():
        return kept
    return [(kept or [MlflowConfig()])[0].model_copy(update={"uri": uri})]
