"""Where fetched weights lie, what is written beside them, and whether anything may be fetched."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self, final

import platformdirs
from pydantic import BaseModel

from freeflow_core.files import write_text
from freeflow_core.plugin import WeightFile

CACHE_VARIABLE = "FREEFLOW_CACHE"
OFFLINE_VARIABLE = "FREEFLOW_OFFLINE"
OnProgress = Callable[[int, int | None], None]
"""``on_progress(done, total)``: bytes so far, and of the whole file where known. Called often: it should be cheap."""

_NO = ("", "0", "false", "no", "off")
_HTML = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|html)\b", re.IGNORECASE)


def cache_folder() -> Path:
    """``FREEFLOW_CACHE``, else the platform's folder for caches; absolute, ``~`` expanded, perhaps not there yet."""
    chosen = os.environ.get(CACHE_VARIABLE, "").strip() or platformdirs.user_cache_dir("freeflow", appauthor=False)
    return Path(os.path.abspath(os.path.expanduser(chosen)))  # not Path.expanduser: it raises where there is no home


def cache_usage(folder: Path) -> tuple[int, int]:
    """Number of fetched files under ``folder``, and the bytes that all files there take."""
    count = size = 0
    for path in (folder / "weights").glob("*/*"):
        size += file_size(path) or 0
        count += path.with_name(f"{path.name}.json").exists() and path.suffix != ".partial"
    return count, size


def offline_variable() -> str | None:
    """The variable that is set to forbid downloads, or None. ``FREEFLOW_OFFLINE=0`` outweighs ``HF_HUB_OFFLINE=1``."""
    ours, hubs = (os.environ.get(name, "").strip().lower() for name in (OFFLINE_VARIABLE, "HF_HUB_OFFLINE"))
    if ours:
        return OFFLINE_VARIABLE if ours not in _NO else None
    return "HF_HUB_OFFLINE" if hubs not in _NO else None


@contextmanager
def offline() -> Iterator[None]:
    """Within it nothing is fetched: what is not here raises ``DownloadError``."""
    before = os.environ.get(OFFLINE_VARIABLE)
    os.environ[OFFLINE_VARIABLE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[OFFLINE_VARIABLE]
        else:
            os.environ[OFFLINE_VARIABLE] = before


def data_size(num_bytes: int) -> str:
    """``512 bytes``, ``1.5 KiB``, ``2.50 GiB``."""
    if num_bytes < 1024:
        return f"{num_bytes} bytes"
    for unit, scale in (("KiB", 2**10), ("MiB", 2**20)):
        if num_bytes < 1024 * scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes / 2**30:.2f} GiB"


def file_size(path: Path) -> int | None:
    """Bytes of a file, or None when there is none that can be read."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


def is_html(start: bytes) -> bool:
    """Whether a file that begins like this is a web page."""
    return _HTML.match(start) is not None


class Content(NamedTuple):
    """What reading a whole file tells: its bytes, their hex digest, and whether it is a web page."""

    size: int
    sha256: str
    is_page: bool


def read_content(path: Path, on_progress: OnProgress | None = None, copy_to: BinaryIO | None = None) -> Content:
    """Read a file, and write it to ``copy_to`` on the way. Raises ``OSError``."""
    digest, done, total, is_page = hashlib.sha256(), 0, path.stat().st_size, False
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            if copy_to is not None:
                copy_to.write(chunk)
            digest.update(chunk)
            is_page = is_page or (done == 0 and is_html(chunk))
            done += len(chunk)
            if on_progress is not None:
                on_progress(done, total)
    return Content(done, digest.hexdigest(), is_page)


@final
class Place:
    """The files of one weight in the cache: a folder of its own, ``weights/<name>-<fingerprint>/``.

    Beside ``file``: the ``record`` of what was fetched; ``partial``, what has arrived of a download, and
    ``partial_state``, of which; ``incoming``, a local copy in the making; ``lock``, held while writing, left behind.
    Beside the folder, and there after it was deleted: ``remembered``, the digest of the first download.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        suffixes = ("json", "partial", "partial.json", "incoming", "lock")
        self.record, self.partial, self.partial_state, self.incoming, self.lock = (
            file.with_name(f"{file.name}.{suffix}") for suffix in suffixes
        )
        self.remembered = file.parent.with_name(f"{file.parent.name}.sha256")

    @classmethod
    def of(cls, weight: WeightFile, folder: Path) -> Self:
        """The fingerprint covers where the weights come from, so no two weights share a folder, on any file system."""
        identity = [weight.name, weight.url, weight.repository, weight.revision, weight.filename]
        fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", weight.name).strip("-.")[:60] or "weights"
        return cls(folder / "weights" / f"{readable}-{fingerprint}" / weight.filename.rsplit("/", 1)[-1])


class Facts(BaseModel, frozen=True):
    """Base: facts kept as JSON in a file that is either whole or not there."""

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """None when there are none, or they cannot be understood."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            return None

    def write(self, path: Path) -> None:
        write_text(path, self.model_dump_json(indent=1) + "\n")


@final
class Record(Facts):
    """Of a file in the cache that was checked when it came in: bytes, hex digest, address."""

    size: int
    sha256: str
    origin: str


@final
class Remote(Facts):
    """One version of a file on a server, by what the server said of it; None where it said nothing."""

    url: str
    size: int | None = None
    etag: str | None = None
    last_modified: str | None = None
    sha256: str | None = None

    @property
    def validator(self) -> str | None:
        """For ``If-Range``, which takes no weak entity tags (RFC 9110, section 13.1.5)."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified

    def contradicts(self, other: Remote) -> bool:
        names = ("size", "etag", "last_modified")
        return any(len({getattr(self, name), getattr(other, name)} - {None}) > 1 for name in names)
