"""Whether runs and published weights can be written, and the MLflow store reached that runs would write to."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from freeflow_core.tracking import redact
from freeflow_core.types import Check, Status
from freeflow_core.weights import cache_folder, cache_usage, data_size, offline_variable

LITTLE = 2 * 2**30
"""Bytes free below which a run with checkpoints of a large network fills the disk."""
VARIABLE = "MLFLOW_TRACKING_URI"
_SECONDS = 3
_SQLITE = re.compile(r"^sqlite(\+\w+)?:///")
_NAME = "MLflow"
_KEPT = "runs go on, and keep their metrics for `freeflow mlflow-sync`"


def check_storage() -> list[Check]:
    """The folder that runs go to, and the cache of published weights. Makes no folder."""
    runs, cache = Path.cwd() / "runs", cache_folder()
    num_files, num_bytes = cache_usage(cache)
    offline = f", offline by {offline_variable()}" if offline_variable() else ""
    held = f"{cache} holds {num_files} file(s), {data_size(num_bytes)}{offline}"
    return [
        _writable("runs folder", runs, str(runs), "error", "use --output elsewhere"),
        _writable("weights cache", cache, held, "warning", "set FREEFLOW_CACHE to fetch more"),
    ]


def _writable(name: str, folder: Path, shown: str, otherwise: Status, remedy: str) -> Check:
    """Whether ``folder``, or the one that it would be made in, can be written and has room."""
    try:
        free = _free(_existing(folder))
    except OSError as error:
        return Check(name, otherwise, f"{shown}; not writable ({error}); {remedy}")
    if free < LITTLE:
        return Check(name, "warning", f"{shown}; only {data_size(free)} free, which large networks may fill; {remedy}")
    return Check(name, "ok", f"{shown}; writable, {data_size(free)} free")


def _existing(folder: Path) -> Path:
    return next((path for path in (folder, *folder.parents) if path.is_dir()), folder)


def _free(folder: Path) -> int:
    """Bytes free in a folder that can be written. Raises ``OSError`` where it cannot."""
    with tempfile.NamedTemporaryFile(dir=folder):
        return shutil.disk_usage(folder).free


def check_tracking(environment: Mapping[str, str] = os.environ) -> Check:
    """Of the address in ``MLFLOW_TRACKING_URI``; without one, of the file that the tracker makes beside the runs.

    A run never fails for its tracker, so that what is wrong here is a warning.
    """
    uri = environment.get(VARIABLE, "").strip()
    if not uri:
        return _database(Path.cwd() / "runs" / "mlflow.db", f"no {VARIABLE}; runs go to ")
    shown = redact(uri)
    if uri.startswith(("http://", "https://")):
        return _server(uri, shown)
    if match := _SQLITE.match(uri):
        return _database(Path(uri[match.end() :].partition("?")[0]), "")
    return Check(_NAME, "ok", f"{shown}; this kind of address is left to MLflow")


def _server(uri: str, shown: str) -> Check:
    request = urllib.request.Request(f"{uri.rstrip('/')}/health", method="GET")
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            return Check(_NAME, "ok", f"{shown} answers ({answer.status})")
    except urllib.error.HTTPError as error:
        if error.code in (401, 403, 404):  # a server is there, with a door or a path of its own
            return Check(_NAME, "ok", f"{shown} answers ({error.code}); whether it lets runs in was not tried")
        return Check(_NAME, "warning", f"{shown} answers with an error ({error.code}); {_KEPT}")
    except (OSError, ValueError) as error:
        reason = redact(str(getattr(error, "reason", error)))
        return Check(_NAME, "warning", f"{shown} cannot be reached within {_SECONDS} s ({reason}); {_KEPT}")


def _database(file: Path, prefix: str) -> Check:
    """Opened read-only, so that looking makes nothing."""
    if not file.exists():
        folder = next((path for path in file.absolute().parents if path.is_dir()), file.parent)
        if not os.access(folder, os.W_OK):
            return Check(_NAME, "warning", f"{prefix}{file}, but {folder} cannot be written; {_KEPT}")
        return Check(_NAME, "ok", f"{prefix}{file}, which the first run makes")
    try:
        address = f"file:{urllib.parse.quote(str(file.absolute()))}?mode=ro"
        connection = sqlite3.connect(address, uri=True, timeout=_SECONDS)
        try:
            connection.execute("select count(*) from sqlite_master").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        return Check(_NAME, "warning", f"{prefix}{file} is no database that can be read ({error}); {_KEPT}")
    if not os.access(file, os.W_OK):
        return Check(_NAME, "warning", f"{prefix}{file} can be read, not written; {_KEPT}")
    return Check(_NAME, "ok", f"{prefix}{file}")
