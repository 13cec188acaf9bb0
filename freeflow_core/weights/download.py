"""One file over HTTP: resumed where it was interrupted, retried when that may help, hashed as it arrives."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import final

import requests

from freeflow_core import __version__
from freeflow_core.errors import DownloadError, Interrupted
from freeflow_core.plugin import WeightFile
from freeflow_core.weights.address import Address
from freeflow_core.weights.answer import hub_sha256, is_html_type, range_start, remote_of, retry_after
from freeflow_core.weights.content import check_not_html, check_sha256, check_size, is_html
from freeflow_core.weights.failures import PASSING_STATUS, PassingFailure, network_failure, refused_status, truncated
from freeflow_core.weights.options import TransferOptions
from freeflow_core.weights.partial import PartialFile, Remote
from freeflow_core.weights.progress import OnProgress
from freeflow_core.weights.space import check_space, disk_failure
from freeflow_core.weights.text import data_size


@final
class Download:
    """Brings ``partial`` to its full length.

    Raises:
        DownloadError: no network, no such file, another file than published, no space, too many failures.
        Interrupted: Ctrl-C.
    """

    def __init__(
        self,
        weight: WeightFile,
        address: Address,
        partial: PartialFile,
        options: TransferOptions,
        on_progress: OnProgress | None,
    ) -> None:
        self._weight = weight
        self._address = address
        self._partial = partial
        self._options = options
        self._on_progress = on_progress
        self._session = requests.Session()

    def run(self) -> None:
        """All attempts. What has arrived is kept on failures that may pass, and dropped when it is of no use."""
        furthest, failures = self._partial.offset, 0
        try:
            while True:
                try:
                    return self._attempt()
                except PassingFailure as failure:
                    if self._partial.offset > furthest:
                        furthest, failures = self._partial.offset, 0
                    # Without any answer so far, the network is more likely missing than hiccuping: say so at once.
                    hopeless = not failure.connected and furthest == 0
                    if hopeless or failures >= len(self._options.delays):
                        raise self._with_kept(failure.error) from failure.__cause__
                    time.sleep(max(self._options.delays[failures], min(failure.delay, self._options.max_delay)))
                    failures += 1
        except KeyboardInterrupt as error:
            raise Interrupted(f"The download of {self._weight.name!r} was stopped. {self._kept()}") from error
        finally:
            self._session.close()

    def _attempt(self) -> None:
        partial, options = self._partial, self._options
        if partial.remote is not None and partial.offset == partial.remote.size:
            return self._finish()  # an earlier process ended between the last byte and the new name
        try:
            with self._session.get(
                self._address.url,
                headers=self._headers(),
                stream=True,
                timeout=(options.connect_timeout, options.read_timeout),
            ) as response:
                self._begin(response)
                self._report()
                for chunk in response.iter_content(options.chunk_bytes):
                    self._append(chunk)
                    self._report()
        except (requests.RequestException, ConnectionError, TimeoutError) as error:
            raise network_failure(self._weight, self._address.url, error) from error
        return self._finish()

    def _headers(self) -> dict[str, str]:
        headers = {
            "User-Agent": f"freeflow/{__version__}",
            "Accept-Encoding": "identity",  # lengths and ranges are those of the file itself
            **self._address.headers,
        }
        remote = self._partial.remote
        if self._partial.offset and remote is not None:
            validator = remote.validator
            if validator is None and self._expected_sha256() is None:
                return headers  # the whole file: nothing would tell a splice of two versions
            headers["Range"] = f"bytes={self._partial.offset}-"
            if validator is not None:
                headers["If-Range"] = validator
        return headers

    def _begin(self, response: requests.Response) -> None:
        """Take the answer's facts; afterwards ``partial`` waits for the first byte of the body."""
        partial, url = self._partial, self._address.url
        status = response.status_code
        if status == 206 and partial.offset:
            remote = self._remote(response)
            if range_start(response) != partial.offset or partial.remote is None or remote.contradicts(partial.remote):
                partial.clear()
                raise PassingFailure(DownloadError(f"The file at {url} changed while it was fetched."))
        elif status == 416 and partial.offset:
            partial.clear()
            raise PassingFailure(DownloadError(f"{url} no longer has the part that was asked for."))
        elif status == 200:
            check_not_html(self._weight, url, is_page=is_html_type(response))
            partial.start(self._remote(response))
        else:
            error = refused_status(self._weight, url, response)
            raise PassingFailure(error, delay=retry_after(response)) if status in PASSING_STATUS else error
        try:
            check_size(self._weight, self._size(), f"The file at {url}")
        except DownloadError:
            partial.clear()
            raise
        self._check_space()

    def _append(self, chunk: bytes) -> None:
        if self._partial.offset == 0 and is_html(chunk):
            self._partial.clear()
            check_not_html(self._weight, self._address.url, is_page=True)
        if self._weight.size is not None and self._partial.offset + len(chunk) > self._weight.size:
            self._partial.clear()  # a server that states no length could go on for ever
            check_size(self._weight, self._weight.size + 1, f"What has arrived from {self._address.url}")
        try:
            self._partial.write(chunk)
        except OSError as error:
            raise self._with_kept(disk_failure(self._partial.path, error)) from error

    def _finish(self) -> None:
        """Check the whole; drop it when it is not what was published."""
        got, url = self._partial.offset, self._address.url
        expected = self._size() or self._weight.size
        if got == 0 or (expected is not None and got < expected):
            raise truncated(self._weight, url, got, expected)
        try:
            check_sha256(self._weight, self._partial.sha256, self._expected_sha256(), f"The file at {url}")
        except DownloadError:
            self._partial.clear()
            raise

    def _check_space(self) -> None:
        size = self._size() or self._weight.size
        if size is not None:
            try:
                check_space(self._weight, size - self._partial.offset, self._partial.path.parent)
            except DownloadError as error:
                raise self._with_kept(error) from None

    def _remote(self, response: requests.Response) -> Remote:
        remote = remote_of(response, self._address.url)
        return replace(remote, sha256=hub_sha256(response)) if self._weight.repository is not None else remote

    def _size(self) -> int | None:
        return self._partial.remote.size if self._partial.remote is not None else None

    def _expected_sha256(self) -> str | None:
        return self._weight.sha256 or (self._partial.remote.sha256 if self._partial.remote is not None else None)

    def _report(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self._partial.offset, self._size() or self._weight.size)

    def _kept(self) -> str:
        if self._partial.offset == 0:
            return "Nothing is left behind; the same command begins again."
        size = self._size() or self._weight.size
        amount = data_size(self._partial.size_on_disk) + (f" of {data_size(size)}" if size is not None else "")
        return f"{amount} are kept in {self._partial.path}; the same command goes on from there."

    def _with_kept(self, error: DownloadError) -> DownloadError:
        return DownloadError(f"{error} {self._kept()}")
