"""Addresses, names and parameters as MLflow takes them."""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from freeflow_core.tracking import redact

MAX_PARAMETER, MAX_TAG = 6000, 5000
_SQLITE = re.compile(r"^sqlite(\+\w+)?:///")


def tracking_uri(configured: str | None, run_folder: Path) -> str:
    """The configured URI, else the environment's, else ``mlflow.db`` next to the folder of the run.

    For a run of a comparison that is the comparison's folder, so that all its runs are in one store.
    """
    beside = f"sqlite:///{(run_folder.resolve().parent / 'mlflow.db').as_posix()}"
    return configured or os.environ.get("MLFLOW_TRACKING_URI") or beside


def artifact_location(uri: str) -> str | None:
    """Where a new experiment keeps its files: next to a sqlite file; ``None`` leaves the choice to the server.

    MLflow's own choice for sqlite is a folder in the working directory, which a later run may not share.
    """
    if not (match := _SQLITE.match(uri)):
        return None
    return (Path(uri[match.end() :].partition("?")[0]).resolve().parent / "mlartifacts").as_uri()


def is_server(uri: str) -> bool:
    """False where this process itself opens the database, and may make its tables."""
    return uri.startswith(("http:", "https:", "databricks"))


def view_hint(uri: str, experiment_id: str, run_id: str) -> str:
    """What to open, or to run, to look at a run."""
    if is_server(uri):
        return f"{redact(uri).rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"
    return f"mlflow ui --backend-store-uri {redact(uri)}"


def safe_name(name: str) -> str:
    """``name`` as MLflow accepts it: letters, digits and ``_ - . / space``, no path that climbs, 250 characters."""
    clean = posixpath.normpath(re.sub(r"[^A-Za-z0-9_\-. /]", "_", name)).lstrip("./")
    return clean[:250] or "unnamed"


def parameters(config: Mapping[str, Any]) -> dict[str, str]:
    """Dotted names to text, e.g. ``training.batch_size: "64"``, without credentials, long values cut.

    Scalars are written as in JSON, but strings carry no quotes; lists of scalars are one value, lists of mappings are
    numbered from 0.
    """
    return {safe_name(name): shorten(redact(value), MAX_PARAMETER) for name, value in _flatten(config, "")}


def shorten(text: str, limit: int) -> str:
    """``text`` cut to ``limit`` characters, the last of which say so."""
    note = f" ... [cut: {len(text)} characters; config.yaml has them all]"
    return text if len(text) <= limit else text[: limit - len(note)] + note


def _flatten(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        value = {str(index): item for index, item in enumerate(value)}
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flatten(item, f"{path}.{key}" if path else str(key))
    elif path:
        yield path, value if isinstance(value, str) else json.dumps(value, default=str)
