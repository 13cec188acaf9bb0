"""Which MLflow store a run goes to, and how to write that address where others may read it."""

from __future__ import annotations

import os
import re
from pathlib import Path

URI_VARIABLE = "MLFLOW_TRACKING_URI"
MASK = "***"
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@'\"]+(?=@)")
_SQLITE = re.compile(r"^sqlite(\+\w+)?:///")


def tracking_uri(configured: str | None, run_folder: Path) -> str:
    """The configured URI, else the environment's, else a sqlite file next to the folder of the run.

    For a run of a comparison that is the comparison's folder, so that all its runs are in one store.
    """
    return configured or os.environ.get(URI_VARIABLE) or default_uri(run_folder)


def default_uri(run_folder: Path) -> str:
    """``mlflow.db`` in the folder that holds the run folder, so that all runs there are compared in one place."""
    return f"sqlite:///{(run_folder.resolve().parent / 'mlflow.db').as_posix()}"


def artifact_location(uri: str) -> str | None:
    """Where a new experiment keeps its files: next to a sqlite file; ``None`` leaves the choice to the server.

    MLflow's own choice for sqlite is a folder in the working directory, which a later run may not share.
    """
    if not (match := _SQLITE.match(uri)):
        return None
    database = Path(uri[match.end() :].partition("?")[0])
    return (database.resolve().parent / "mlartifacts").as_uri()


def is_database(uri: str) -> bool:
    """True where this process itself opens the database and may create its tables."""
    return not uri.startswith(("http:", "https:", "databricks"))


def redact(text: str) -> str:
    """``text`` with ``user:password@`` in addresses masked: configurations end up in checkpoints and in the UI."""
    return _CREDENTIALS.sub(MASK, text)


def is_redacted(uri: str) -> bool:
    """True for an address whose credentials :func:`redact` has removed."""
    return f"://{MASK}@" in uri


def view_hint(uri: str, experiment_id: str, run_id: str) -> str:
    """What to open, or to run, to look at a run."""
    if is_database(uri):
        return f"mlflow ui --backend-store-uri {redact(uri)}"
    return f"{redact(uri).rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"
