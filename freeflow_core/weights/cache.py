"""Where fetched weights lie, and what is written beside them."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import platformdirs

from freeflow_core.plugin import WeightFile

CACHE_VARIABLE = "FREEFLOW_CACHE"


def cache_folder() -> Path:
    """``FREEFLOW_CACHE``, else the platform's folder for caches; absolute, ``~`` expanded, perhaps not there yet."""
    chosen = os.environ.get(CACHE_VARIABLE, "").strip() or platformdirs.user_cache_dir("freeflow", appauthor=False)
    return Path(os.path.abspath(os.path.expanduser(chosen)))  # not Path.expanduser: it raises where there is no home


def cache_usage(folder: Path) -> tuple[int, int]:
    """Number of fetched files under ``folder``, and the bytes that all files there take."""
    count = size = 0
    for path in (folder / "weights").glob("*/*"):
        try:
            size += path.stat().st_size
        except OSError:
            continue  # removed meanwhile, or another user's
        count += path.with_name(f"{path.name}.json").exists() and path.suffix != ".partial"
    return count, size


@dataclass(frozen=True)
class Place:
    """The files of one weight in the cache: a folder of its own, ``weights/<name>-<fingerprint>/``."""

    file: Path

    @classmethod
    def of(cls, weight: WeightFile, folder: Path) -> Place:
        """The fingerprint covers where the weights come from, so no two weights share a folder, on any file system."""
        identity = [weight.name, weight.url, weight.repository, weight.revision, weight.filename]
        fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", weight.name).strip("-.")[:60] or "weights"
        return cls(folder / "weights" / f"{readable}-{fingerprint}" / weight.filename.rsplit("/", 1)[-1])

    @property
    def record(self) -> Path:
        """What was fetched: size, SHA-256, origin."""
        return self._beside("json")

    @property
    def partial(self) -> Path:
        """As much of the file as has arrived."""
        return self._beside("partial")

    @property
    def partial_state(self) -> Path:
        """Which remote file ``partial`` is the beginning of."""
        return self._beside("partial.json")

    @property
    def incoming(self) -> Path:
        """A local copy that is being made."""
        return self._beside("incoming")

    @property
    def lock(self) -> Path:
        """Held by the process that writes here. Stays behind, empty: removing a lock file would break the lock."""
        return self._beside("lock")

    def _beside(self, suffix: str) -> Path:
        return self.file.with_name(f"{self.file.name}.{suffix}")


@dataclass(frozen=True)
class Record:
    """Facts about a file in the cache that was checked when it came in."""

    size: int
    sha256: str
    origin: str

    @classmethod
    def read(cls, place: Place) -> Record | None:
        """None when there is none, or it cannot be understood."""
        values = read_json(place.record)
        try:
            return cls(int(values["size"]), str(values["sha256"]), str(values["origin"]))
        except (KeyError, TypeError, ValueError):
            return None

    def write(self, place: Place) -> None:
        """Replace the record atomically."""
        write_json(place.record, asdict(self))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty when there is none."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def write_json(path: Path, values: dict[str, Any]) -> None:
    """A JSON object as a file that is either whole or not there."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(values, indent=1) + "\n", "utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
