"""What this plugin offers: the tracker, and the command that sends what could not be sent during a run."""

from __future__ import annotations

from typing import Any

from freeflow_core.plugin import Component, hookimpl

freeflow_api = "1"


@hookimpl
def freeflow_trackers() -> list[Component]:
    """The MLflow tracker."""
    return [Component("mlflow", ".tracker:MlflowTracker", ".config:MlflowConfig")]


@hookimpl
def freeflow_commands(app: Any) -> None:
    """Add ``freeflow mlflow-sync`` to the Typer application."""
    from freeflow_mlflow.sync import mlflow_sync

    app.command("mlflow-sync")(mlflow_sync)
