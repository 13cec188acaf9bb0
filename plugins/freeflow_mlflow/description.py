"""What a run is called and found by in MLflow: name, tags, description, parameters, as MLflow takes them."""

from __future__ import annotations

import json
import posixpath
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from freeflow_core import __version__
from freeflow_core.tracking import redact
from freeflow_core.types import RunInfo

MAX_PARAMETER, MAX_TAG = 6000, 5000


def facts(config: Mapping[str, Any]) -> dict[str, str]:
    """Tags by which runs are told apart and found again, alike for single runs and those of a comparison."""

    def name(kind: str) -> str | None:
        part = config.get(kind)
        return part.get("name") if isinstance(part, Mapping) else part

    found = {kind: name(kind) for kind in ("teacher", "objective", "student", "source")}
    found["data_free"] = {None: None, "prior": "true"}.get(found["source"], "false")
    found["seed"] = None if config.get("seed") is None else str(config["seed"])
    return {key: value for key, value in found.items() if value is not None}


def shown_name(run: RunInfo) -> str:
    """Teacher (or source), objective and seed; of a run in a comparison, its name there, which has the swept value."""
    tags = facts(run.config)
    beginning = tags.get("teacher") or tags.get("source")
    if run.parent is not None or not beginning or not {"objective", "seed"} <= tags.keys():
        return f"{beginning} {run.name}" if run.parent is not None and beginning else run.name
    return f"{beginning} {tags['objective']} seed {tags['seed']}"


def surroundings() -> dict[str, str]:
    """User and git commit of the working folder, as MLflow's own runs have them, and this package's version."""
    from mlflow.tracking.context.registry import resolve_tags

    return {**resolve_tags(), **_commit(), "freeflow.version": __version__}


def _commit() -> dict[str, str]:
    """Empty outside a git repository, or without git."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": found.stdout.strip()}


def description(folder: Path) -> str:
    """The report of a run, or the table of a comparison, without its pictures and the pointer to its configuration."""
    for name in ("report.md", "comparison.md"):
        if (path := folder / name).is_file():
            text = path.read_text("utf-8").partition("## Configuration")[0]
            text = re.sub(r"^(## .*\n\n)?!\[.*$\n?", "", text, flags=re.MULTILINE)
            return text.strip() + "\n"
    return ""


def safe_name(name: str) -> str:
    """``name`` as MLflow accepts it: letters, digits and ``_ - . / space``, no path that climbs, 250 characters."""
    clean = posixpath.normpath(re.sub(r"[^A-Za-z0-9_\-. /]", "_", name)).lstrip("./")
    return clean[:250] or "unnamed"


def parameters(config: Mapping[str, Any]) -> dict[str, str]:
    """Dotted names to text, e.g. ``training.batch_size: "64"``, without credentials, long values cut.

    Scalars are written as in JSON, but strings carry no quotes; lists of scalars are one value, lists of mappings are
    numbered from 0. What is not set, null, is left out.
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
    elif path and value is not None:
        yield path, value if isinstance(value, str) else json.dumps(value, default=str)
