"""What went wrong between us and a server, in words."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import requests

from freeflow_core.errors import DownloadError
from freeflow_core.plugin import WeightFile
from freeflow_core.weights.text import by_hand

PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers after which the same request may succeed."""


@dataclass
class PassingFailure(Exception):
    """A failure after which another attempt is worth while; ``error`` is raised when there are no attempts left.

    Args:
        error: what the user reads.
        delay: seconds that the server asks to wait.
        connected: False when no connection came about at all.
    """

    error: DownloadError
    delay: float = 0.0
    connected: bool = True


def refused_status(weight: WeightFile, url: str, response: requests.Response) -> DownloadError:
    """The error for an answer that is not a file."""
    status = response.status_code
    code = response.headers.get("X-Error-Code", "")  # the hub's own, more exact than the status
    detail = f"{status} {code or response.reason or ''}".strip()
    if weight.repository is not None and status in (401, 403):
        return DownloadError(
            f"The hub does not let you read {weight.filename} of {weight.repository} ({detail}): the repository is "
            "private, asks to accept its conditions first, or does not exist. Accept them on its page, then log in "
            "with `hf auth login` or set HF_TOKEN."
        )
    if weight.repository is not None and status == 404:
        return DownloadError(
            f"The hub has no {weight.filename} in {weight.repository}, revision {weight.revision!r} ({detail}, {url}): "
            f"the publisher may have moved or withdrawn it. Look for its new place, {by_hand(weight)}."
        )
    if status in (404, 410):
        return DownloadError(
            f"There is no file at {url} ({detail}): the publisher may have moved or withdrawn it. Look for its new "
            f"place, {by_hand(weight)}."
        )
    if status in (401, 403):
        return DownloadError(f"{url} is not open to you ({detail}). Open it in a browser, {by_hand(weight)}.")
    if status in PASSING_STATUS:
        return DownloadError(
            f"{_host(url)} cannot deliver {url} at present ({detail}). Try again later, or {by_hand(weight)}."
        )
    return DownloadError(f"{url} answered {detail}, which is no file. Open it in a browser, {by_hand(weight)}.")


def network_failure(weight: WeightFile, url: str, error: Exception) -> PassingFailure | DownloadError:
    """What a broken connection means, and whether another attempt may help."""
    host = _host(url)
    causes = list(_chain(error))

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if caused_by(requests.exceptions.SSLError):
        return DownloadError(
            f"The certificate of {host} cannot be verified ({_words(causes[-1])}). Check the clock, the certificates "
            f"and the proxy of this machine, or {by_hand(weight)}."
        )
    if caused_by(requests.exceptions.ConnectTimeout):
        return _unreachable(weight, host, "did not answer in time")
    if caused_by(requests.exceptions.ProxyError):
        return _unreachable(weight, host, f"cannot be reached through the proxy: {_words(causes[-1])}")
    if caused_by(socket.gaierror):
        return _unreachable(weight, host, "cannot be found: there is no such name, or no network")
    if caused_by(ConnectionRefusedError):
        return _unreachable(weight, host, "refused the connection")
    if caused_by(requests.exceptions.ReadTimeout, TimeoutError):
        return PassingFailure(DownloadError(f"{host} fell silent before it had sent all of {url}."))
    if caused_by(requests.exceptions.ChunkedEncodingError, ConnectionResetError, ConnectionAbortedError):
        return PassingFailure(DownloadError(f"The connection to {host} broke before all of {url} had arrived."))
    if caused_by(requests.exceptions.ConnectionError):
        return _unreachable(weight, host, f"cannot be reached: {_words(causes[-1])}")
    return DownloadError(f"{url} cannot be fetched: {_words(causes[-1])}. If this stays so, {by_hand(weight)}.")


def truncated(weight: WeightFile, url: str, got: int, expected: int | None) -> PassingFailure:
    """The server closed the connection, with every sign of success, before the end."""
    of = f" of {expected:,}" if expected is not None else ""
    return PassingFailure(
        DownloadError(f"{url} ended too early: {got:,}{of} bytes of the weights {weight.name!r} arrived.")
    )


def _unreachable(weight: WeightFile, host: str, what: str) -> PassingFailure:
    error = DownloadError(
        f"The weights {weight.name!r} cannot be fetched: {host} {what}. Check the network and the proxy settings, "
        f"or {by_hand(weight)}."
    )
    return PassingFailure(error, connected=False)


def _host(url: str) -> str:
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[2] or url  # never a password


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, then what caused it, down to the first cause."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
