"""The beginning of a file that is being downloaded, kept so that a later attempt goes on from there."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import BinaryIO, Self, final

from freeflow_core.weights.cache import Place, read_json, write_json
from freeflow_core.weights.content import read_chunks


@dataclass(frozen=True)
class Remote:
    """One version of a file on a server, by what the server said of it.

    Args:
        url: where it was asked for.
        size: bytes of the whole file, or None.
        etag: HTTP's name for the version, or None.
        last_modified: HTTP date, or None.
        sha256: hex digest, where the server states one (the hub does).
    """

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
        """Whether the two cannot be the same version."""
        pairs = ((self.size, other.size), (self.etag, other.etag), (self.last_modified, other.last_modified))
        return any(mine is not None and theirs is not None and mine != theirs for mine, theirs in pairs)


@final
class PartialFile:
    """A context: opens what an earlier attempt left of ``url``, if anything; an empty file does not stay behind.

    ``offset`` is the number of bytes so far and ``remote`` the version they belong to. The SHA-256 runs along.

    Raises:
        OSError: reading or writing failed.
    """

    def __init__(self, place: Place, url: str) -> None:
        self.path = place.partial
        self.offset = 0
        self.remote: Remote | None = None
        self._state = place.partial_state
        self._url = url
        self._digest = hashlib.sha256()
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        self._take_over()
        self._file = self.path.open("ab")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        if self.offset == 0:
            self._remove()

    @property
    def sha256(self) -> str:
        """Of the bytes so far."""
        return self._digest.hexdigest()

    @property
    def size_on_disk(self) -> int:
        """More than ``offset`` when an interrupt fell between a write and the count of it."""
        return self.path.stat().st_size

    def start(self, remote: Remote) -> None:
        """Begin with the first byte of ``remote``; drops what was there."""
        self.clear()
        self.remote = remote
        write_json(self._state, asdict(remote))

    def write(self, chunk: bytes) -> None:
        """Append."""
        assert self._file is not None, "a PartialFile is written inside its context"
        self._file.write(chunk)
        self._file.flush()
        self._digest.update(chunk)
        self.offset += len(chunk)

    def clear(self) -> None:
        """Forget all bytes so far."""
        assert self._file is not None, "a PartialFile is cleared inside its context"
        self._file.truncate(0)
        self._digest, self.offset, self.remote = hashlib.sha256(), 0, None
        self._state.unlink(missing_ok=True)

    def _take_over(self) -> None:
        values = read_json(self._state)
        try:
            remote = Remote(**values)
            size = self.path.stat().st_size
        except (TypeError, OSError):
            self._remove()
            return
        if remote.url != self._url or (remote.size is not None and size > remote.size):
            self._remove()
            return
        for chunk in read_chunks(self.path):
            self._digest.update(chunk)
            self.offset += len(chunk)
        self.remote = remote

    def _close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk has been reported by write
                self._file.close()
            self._file = None

    def _remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._state.unlink(missing_ok=True)
