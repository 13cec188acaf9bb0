"""One file over HTTP: resumed where it was interrupted, retried when that may help, hashed as it arrives."""

import hashlib
import logging
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, final
from urllib.parse import urljoin, urlsplit

import requests

from freeflow_core.errors import DownloadError
from freeflow_core.plugin import WeightFile
from freeflow_core.weights.cache import OnProgress, Place, Record, Remote, data_size, is_html
from freeflow_core.weights.failures import PassingFailure, by_hand, check, check_space, network_failure, refused_status
from freeflow_core.weights.hub import USER_AGENT

_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_SHA256 = re.compile(r'"?([0-9a-f]{64})"?')
_LOG = logging.getLogger("freeflow")


@final
@dataclass(frozen=True)
class TransferOptions:
    """How patient a transfer is; times in seconds."""

    connect_timeout: float = 10.0
    read_timeout: float = 30.0  # between two pieces of data
    delays: tuple[float, ...] = (1.0, 2.0, 4.0)  # before new attempts; one that gets further starts the count again
    max_delay: float = 60.0  # longest pause that a server may ask for
    chunk_bytes: int = 1 << 17  # written at once; what an interruption may lose
    lock_patience: float = 600.0  # while another process holds the lock and its file does not grow
    lock_poll: float = 0.5  # between two looks at that file
    max_bytes: int = 32 * 2**30  # of a file of which neither size nor digest is known

    @property
    def timeout(self) -> tuple[float, float]:
        """As ``requests`` takes it."""
        return self.connect_timeout, self.read_timeout


@final
class _Session(requests.Session):
    """Follows no redirect that gives up encryption or leaves the web."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        if (target := super().get_redirect_target(resp)) is None:
            return None
        here, there = urlsplit(resp.url).scheme, urlsplit(urljoin(resp.url, target)).scheme
        if there not in ("http", "https") or (here == "https" and there == "http"):
            raise DownloadError(
                f"{resp.url} sends on from {here} to {there}, which is not followed: what came could not be trusted. "
                "Open the address in a browser."
            )
        return target


@final
class LoggedProgress:
    """An :data:`OnProgress` for where no bar can be drawn: a line every ``interval`` seconds, by default 5 where
    somebody watches and 60 where nobody does."""

    def __init__(self, name: str, interval: float | None = None, now: Callable[[], float] = time.monotonic) -> None:
        watched = sys.stderr is not None and sys.stderr.isatty()
        self._name, self._now = name, now
        self._interval = interval if interval is not None else 5.0 if watched else 60.0
        self._began = self._last = now()
        self._first: int | None = None

    def __call__(self, done: int, total: int | None) -> None:
        now = self._now()
        if self._first is None or done < self._first:  # a transfer that began again
            self._first, self._began = done, now
        if now - self._last < self._interval:
            return
        self._last = now
        share = f" of {data_size(total)} ({done / total:.0%})" if total else ""
        speed = round((done - self._first) / max(now - self._began, 1e-9))
        _LOG.info("Weights %r: %s%s, %s/s.", self._name, data_size(done), share, data_size(speed))


@final
class Download:
    """Fetches ``url`` into ``place.partial``, going on from what an earlier attempt left there.

    The caller holds the lock of ``place``. ``headers`` may hold the user's token, which a redirect does not get.
    ``remembered`` is the digest of an earlier download, where the publisher states none.
    """

    def __init__(
        self,
        weight: WeightFile,
        url: str,
        headers: Mapping[str, str],
        place: Place,
        options: TransferOptions,
        on_progress: OnProgress | None,
        remembered: str | None = None,
    ) -> None:
        self._weight, self._url, self._place, self._options = weight, url, place, options
        self._remembered = remembered
        # Not encoded, so that lengths and ranges are those of the file itself.
        self._headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **headers}
        self._on_progress = on_progress
        self._offset = 0  # bytes so far
        self._digest = hashlib.sha256()  # of them
        self._remote: Remote | None = None  # the version they belong to

    def run(self) -> Record:
        """All attempts, until the partial file is whole and checked; else ``DownloadError``, or the disk's ``OSError``.

        What has arrived is kept on failures that may pass.
        """
        self._take_over()
        try:
            with self._place.partial.open("ab") as file, _Session() as session:
                self._attempts(session, file)
        finally:
            if self._offset == 0:
                self._place.partial.unlink(missing_ok=True)
                self._place.partial_state.unlink(missing_ok=True)
        return Record(size=self._offset, sha256=self._digest.hexdigest(), origin=self._url)

    def _take_over(self) -> None:
        remote, partial = Remote.read(self._place.partial_state), self._place.partial
        if remote is None or remote.url != self._url or not partial.is_file():
            partial.unlink(missing_ok=True)
        elif remote.size is not None and partial.stat().st_size > remote.size:
            partial.unlink()
        else:
            self._remote = remote
            with partial.open("rb") as file:
                while chunk := file.read(1 << 20):
                    self._digest.update(chunk)
                    self._offset += len(chunk)

    def _attempts(self, session: requests.Session, file: BinaryIO) -> None:
        furthest, delays = self._offset, iter(self._options.delays)
        while True:
            try:
                return self._attempt(session, file)
            except PassingFailure as failure:
                if self._offset > furthest:
                    furthest, delays = self._offset, iter(self._options.delays)
                # Without any answer so far, the network is more likely missing than hiccuping: say so at once.
                if (not failure.connected and furthest == 0) or (delay := next(delays, None)) is None:
                    raise
                time.sleep(max(delay, min(failure.delay, self._options.max_delay)))

    def _attempt(self, session: requests.Session, file: BinaryIO) -> None:
        url = self._url
        if self._remote is None or self._offset != self._remote.size:  # else only the new name was missing
            try:
                headers, timeout = self._headers_now(), self._options.timeout
                with session.get(url, headers=headers, stream=True, timeout=timeout) as response:
                    self._begin(response, file)
                    self._report()
                    for chunk in response.iter_content(self._options.chunk_bytes):
                        self._append(chunk, file)
                        self._report()
            except (requests.RequestException, ConnectionError, TimeoutError) as error:
                raise network_failure(self._weight, url, error) from error
        expected = self._size()
        if self._offset == 0 or (expected is not None and self._offset < expected):
            of = f" of {expected:,}" if expected is not None else ""
            raise PassingFailure(
                f"{url} ended too early: {self._offset:,}{of} bytes of the weights {self._weight.name!r} arrived."
            )
        self._check(file, sha256=self._digest.hexdigest())

    def _headers_now(self) -> dict[str, str]:
        """The range that is missing; without a proof of the version or a known hash, the whole file."""
        if self._remote is None or self._offset == 0:
            return self._headers
        rest = self._headers | {"Range": f"bytes={self._offset}-"}
        if (validator := self._remote.validator) is not None:
            return rest | {"If-Range": validator}
        return rest if self._weight.sha256 or self._remote.sha256 else self._headers

    def _begin(self, response: requests.Response, file: BinaryIO) -> None:
        """Take the answer's facts; afterwards ``file`` waits for the first byte of the body."""
        url, status = self._url, response.status_code
        remote, start = self._described(response)
        if status in (206, 416) and self._remote is not None and self._offset:
            if status == 416 or start != self._offset or remote.contradicts(self._remote):
                self._clear(file)
                raise PassingFailure(f"The file at {url} changed while it was fetched.")
        elif status == 200:
            kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            check(self._weight, f"The file at {url}", is_page=kind in ("text/html", "application/xhtml+xml"))
            self._clear(file)
            self._remote = remote
            remote.write(self._place.partial_state)
        else:
            raise refused_status(self._weight, url, response)
        self._check(file, size=remote.size)
        self._check_cap(file, remote.size or 0)
        if (size := self._size()) is not None:
            check_space(self._weight, size - self._offset, self._place.partial.parent)

    def _append(self, chunk: bytes, file: BinaryIO) -> None:
        arrived = self._offset + len(chunk)
        too_long = self._weight.size is not None and arrived > self._weight.size  # without a length it need not end
        self._check(file, is_page=self._offset == 0 and is_html(chunk), size=arrived if too_long else None)
        self._check_cap(file, arrived)
        file.write(chunk)
        file.flush()
        self._digest.update(chunk)
        self._offset = arrived

    def _check(self, file: BinaryIO, **known: Any) -> None:
        """Keep nothing of a file that is not the published one, by what is ``known`` of it."""
        stated = self._remote.sha256 if self._remote is not None else None
        try:
            check(self._weight, f"The file at {self._url}", **known, expected_sha256=stated or self._remembered)
        except DownloadError:
            self._clear(file)
            raise

    def _check_cap(self, file: BinaryIO, size: int) -> None:
        """A file of which nothing is known need not end, and may fill the disk."""
        stated = self._remote.sha256 if self._remote is not None else None
        known = self._weight.size or self._weight.sha256 or stated or self._remembered
        if known is None and size > self._options.max_bytes:
            self._clear(file)
            raise DownloadError(
                f"The file at {self._url} is larger than {data_size(self._options.max_bytes)}, and its publisher "
                f"states neither size nor SHA-256. If that is right, run `freeflow fetch {self._weight.name} "
                "--max-gib N`."
            )

    def _clear(self, file: BinaryIO) -> None:
        file.truncate(0)
        self._digest, self._offset, self._remote = hashlib.sha256(), 0, None
        self._place.partial_state.unlink(missing_ok=True)

    def _described(self, response: requests.Response) -> tuple[Remote, int | None]:
        """The version of the file that an answer carries, whole (200) or in part (206), and its first byte's place."""
        url, headers, sha256 = self._url, response.headers, None
        if self._weight.repository is not None:  # the hub states it before it redirects to where a large file lies
            stated = [_SHA256.fullmatch(r.headers.get("X-Linked-Etag", "")) for r in (*response.history, response)]
            sha256 = next((match[1] for match in stated if match is not None), None)
        span = _CONTENT_RANGE.match(headers.get("Content-Range", ""))
        start = int(span[1]) if span else None
        if (encoding := headers.get("Content-Encoding", "identity")) != "identity":
            raise DownloadError(
                f"{url} answered with a body encoded as {encoding[:40]!r}, which was not asked for: neither its size "
                f"nor its digest would be that of the file. Check the proxy, or {by_hand(self._weight)}."
            )
        length = headers.get("Content-Length", "") if response.status_code == 200 else span[2] if span else ""
        if length not in ("", "*") and not (length.isascii() and length.isdecimal() and int(length) < 2**63):
            raise DownloadError(
                f"{url} states a length of {length[:40]!r}, which is none. Check the proxy, or {by_hand(self._weight)}."
            )
        size = int(length) if length.isdecimal() else None
        etag, last_modified = headers.get("ETag"), headers.get("Last-Modified")
        return Remote(url=url, size=size, etag=etag, last_modified=last_modified, sha256=sha256), start

    def _size(self) -> int | None:
        return (self._remote.size if self._remote is not None else None) or self._weight.size

    def _report(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self._offset, self._size())
