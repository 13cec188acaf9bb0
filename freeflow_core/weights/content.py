"""Is this file what its publisher describes?"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from freeflow_core.errors import DownloadError
from freeflow_core.plugin import WeightFile
from freeflow_core.weights.progress import OnProgress
from freeflow_core.weights.text import by_hand

_READ_BYTES = 1 << 20
_HTML = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|html)\b", re.IGNORECASE)


def read_chunks(path: Path) -> Iterator[bytes]:
    """A file, piece by piece."""
    with path.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            yield chunk


def hash_file(path: Path, on_progress: OnProgress | None = None) -> str:
    """SHA-256 of a file, as hex digits."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    for chunk in read_chunks(path):
        digest.update(chunk)
        done += len(chunk)
        if on_progress is not None:
            on_progress(done, total)
    return digest.hexdigest()


def is_html(start: bytes) -> bool:
    """Whether a file that begins like this is a web page."""
    return _HTML.match(start) is not None


def check_size(weight: WeightFile, size: int | None, what: str) -> None:
    """Raise :class:`DownloadError` when ``size`` is known and not the published one; ``what`` has that size."""
    if size is not None and weight.size is not None and size != weight.size:
        raise DownloadError(
            f"{what} has {size:,} bytes, but the weights {weight.name!r} are known to have {weight.size:,}: it is "
            f"another file, or its publisher has replaced it. If this stays so, {by_hand(weight)}."
        )


def check_sha256(weight: WeightFile, found: str, expected: str | None, what: str) -> None:
    """Raise :class:`DownloadError` when ``expected`` is known and not ``found``, the SHA-256 of ``what``."""
    if expected is not None and found != expected:
        raise DownloadError(
            f"{what} is not the file that was published as {weight.name!r}: expected SHA-256 {expected}, got {found}. "
            f"It was damaged on the way, or its publisher has replaced it. If this stays so, {by_hand(weight)}."
        )


def check_not_html(weight: WeightFile, what: str, *, is_page: bool) -> None:
    """Raise :class:`DownloadError` for a web page, which file shares send when they want a click or a login first."""
    if is_page:
        raise DownloadError(
            f"{what} is a web page, not the weights {weight.name!r}: file shares answer so when they want a click, a "
            f"login, or have no traffic left. Open the address in a browser; {by_hand(weight)}."
        )
