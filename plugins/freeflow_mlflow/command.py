"""``freeflow mlflow-sync``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def mlflow_sync(
    run_folder: Annotated[
        Path, typer.Argument(help="Folder of a run, or of a comparison, whose MLflow server could not be reached.")
    ],
    uri: Annotated[str | None, typer.Option(help="Tracking URI; without it, where the run was meant to go.")] = None,
) -> None:
    """Send to MLflow what a run had to keep locally."""
    from freeflow_mlflow.unsent import send_unsent

    report = send_unsent(run_folder, uri)
    for text in report.skipped:
        typer.echo(f"Skipped: {text}", err=True)
    if not report.runs:
        typer.echo(f"Nothing is waiting in {run_folder}.")
        return
    typer.echo(
        f"Sent {report.metrics} metric values and {report.artifacts} images and files to {', '.join(report.runs)}."
    )
