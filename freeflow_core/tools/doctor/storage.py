"""Whether runs and published weights can be written, and how much still fits."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from freeflow_core.types import Check
from freeflow_core.weights import cache_folder, cache_usage, data_size, offline_variable

LITTLE = 2 * 2**30
"""Bytes free below which a run with checkpoints of a large network fills the disk."""


def check_storage() -> list[Check]:
    """The folder that runs go to, and the cache of weights. Makes no folder."""
    return [_runs(), _weights_cache()]


def _runs() -> Check:
    name, folder = "runs folder", Path.cwd() / "runs"
    existing = _existing(folder)
    try:
        free = _free(existing)
    except OSError as error:
        return Check(name, "error", f"{folder} cannot be written ({error}); use --output elsewhere")
    if free < LITTLE:
        told = f"only {data_size(free)} free in {existing}; checkpoints of large networks may not fit, use --output"
        return Check(name, "warning", told)
    return Check(name, "ok", f"{folder} can be written; {data_size(free)} free")


def _weights_cache() -> Check:
    """Where published weights go, what lies there, and whether more can be written."""
    folder = cache_folder()
    num_files, num_bytes = cache_usage(folder)
    there = f"{folder} holds {num_files} file(s), {data_size(num_bytes)}"
    try:
        free = _free(_existing(folder))
    except OSError as error:
        return Check("weights cache", "warning", f"{there}; not writable ({error}); set FREEFLOW_CACHE to fetch more")
    offline = f"; offline by {offline_variable()}" if offline_variable() else ""
    if free < LITTLE:
        return Check("weights cache", "warning", f"{there}; only {data_size(free)} free, which large weights may fill")
    return Check("weights cache", "ok", f"{there}; writable, {data_size(free)} free{offline}")


def _existing(folder: Path) -> Path:
    return next((path for path in (folder, *folder.parents) if path.is_dir()), folder)


def _free(folder: Path) -> int:
    """Bytes free in a folder that can be written. Raises ``OSError`` where it cannot."""
    with tempfile.NamedTemporaryFile(dir=folder):
        return shutil.disk_usage(folder).free
