"""What can be wrong with a file of weights, a server or a disk, as errors that say what to do."""

import errno
import shutil
import socket
from pathlib import Path
from urllib.parse import urlsplit

import requests

from freeflow_core.errors import DownloadError
from freeflow_core.plugin import WeightFile
from freeflow_core.weights.cache import data_size

BYPASS = "name a copy of your own: --set teacher.checkpoint=PATH, and student.checkpoint or codec.checkpoint likewise"
"""How to do without the cache."""


class PassingFailure(DownloadError):
    """A failure after which another attempt is worth while, ``delay`` seconds later if the server asks for that.

    ``connected`` is False when no connection came about at all.
    """

    def __init__(self, message: str, *, delay: float = 0.0, connected: bool = True) -> None:
        super().__init__(message)
        self.delay = delay
        self.connected = connected


def by_hand(weight: WeightFile) -> str:
    """What to do when no download can work; a clause without a capital or a full stop."""
    place = f" from {weight.source}" if weight.source else ""
    return f"get the file by hand{place} and run `freeflow fetch {weight.name} --from FILE`, or {BYPASS}"


def check(
    weight: WeightFile,
    what: str,
    *,
    size: int | None = None,
    sha256: str | None = None,
    is_page: bool = False,
    expected_sha256: str | None = None,
) -> None:
    """Raise :class:`DownloadError` when the file ``what`` is not the published one by what is known of it: bytes, hex
    digest (to be ``expected_sha256`` where the declaration names none), or that it is a web page.
    """
    expected = weight.sha256 or expected_sha256
    if is_page:
        problem = (
            f"is a web page, not the weights {weight.name!r}: file shares answer so when they want a click, a login, "
            "or have no traffic left. Open the address in a browser."
        )
    elif size is not None and weight.size not in (None, size):
        problem = (
            f"has {size:,} bytes, but the weights {weight.name!r} are known to have {weight.size:,}: it is another "
            "file, or its publisher has replaced it."
        )
    elif sha256 is not None and expected not in (None, sha256):
        problem = (
            f"is not the file that was published as {weight.name!r}: expected SHA-256 {expected}, got {sha256}. It was "
            "damaged on the way, or its publisher has replaced it"
            + ("." if weight.sha256 else f": `freeflow fetch {weight.name} --force` takes the new one.")
        )
    else:
        return
    raise DownloadError(f"{what} {problem} If this stays so, {by_hand(weight)}.")


def check_space(weight: WeightFile, needed: int, folder: Path) -> None:
    """Raise :class:`DownloadError` when ``needed`` bytes do not fit on the disk of ``folder``."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DownloadError(
            f"The weights {weight.name!r} need {data_size(needed)} more, but only {data_size(free)} are free in "
            f"{folder}. Free some space, or choose another folder with FREEFLOW_CACHE."
        )


def disk_failure(path: Path, error: OSError) -> DownloadError:
    """The error for a file or folder that cannot be read or written."""
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return DownloadError(
        f"{error.filename or path} cannot be used: {error.strerror or error}. "
        f"{'Free some space' if is_full else 'Check the disk and the permissions'}, or choose another folder with "
        "FREEFLOW_CACHE."
    )


def refused_status(weight: WeightFile, url: str, response: requests.Response) -> DownloadError:
    """The error for an answer that is not a file: a :class:`PassingFailure` where the same request may yet succeed."""
    status, hub = response.status_code, weight.repository
    code = response.headers.get("X-Error-Code", "")  # the hub's own, more exact than the status
    detail = f"{status} {code or response.reason or ''}".strip()
    if hub is not None and status in (401, 403):
        return DownloadError(
            f"The hub does not let you read {weight.filename} of {hub} ({detail}): the repository is private, asks to "
            "accept its conditions first, or does not exist. Accept them on its page, then log in with `hf auth login` "
            "or set HF_TOKEN."
        )
    if status in (404, 410):
        where = f"in {hub} on the hub, revision {weight.revision!r}" if hub is not None else f"at {url}"
        problem = f"There is no file {where} ({detail}, {url}): the publisher may have moved or withdrawn it"
    elif status in (401, 403):
        problem = f"{url} is not open to you ({detail}). Open it in a browser"
    elif status in (408, 425, 429, 500, 502, 503, 504):
        asked = response.headers.get("Retry-After", "")  # a date, its other form, counts as none
        return PassingFailure(
            f"{_host(url)} cannot deliver {url} at present ({detail}). Try again later, or {by_hand(weight)}.",
            delay=float(asked) if asked.isdecimal() else 0.0,
        )
    else:
        problem = f"{url} answered {detail}, which is no file. Open it in a browser"
    return DownloadError(f"{problem}; or {by_hand(weight)}.")


def network_failure(weight: WeightFile, url: str, error: Exception) -> DownloadError:
    """What a broken connection means: a :class:`PassingFailure` where another attempt may help."""
    host, causes = _host(url), _causes(error)
    first = " ".join(str(causes[-1]).split()).rstrip(".") or type(causes[-1]).__name__

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if caused_by(requests.exceptions.SSLError):
        return DownloadError(
            f"The certificate of {host} cannot be verified ({first}). Check the clock, the certificates and the proxy "
            f"of this machine, or {by_hand(weight)}."
        )
    if caused_by(requests.exceptions.ConnectTimeout):
        unreachable = "did not answer in time"
    elif caused_by(requests.exceptions.ProxyError):
        unreachable = f"cannot be reached through the proxy: {first}"
    elif caused_by(socket.gaierror):
        unreachable = "cannot be found: there is no such name, or no network"
    elif caused_by(ConnectionRefusedError):
        unreachable = "refused the connection"
    elif caused_by(requests.exceptions.ReadTimeout, TimeoutError):
        return PassingFailure(f"{host} fell silent before it had sent all of {url}.")
    elif caused_by(requests.exceptions.ChunkedEncodingError, ConnectionResetError, ConnectionAbortedError):
        return PassingFailure(f"The connection to {host} broke before all of {url} had arrived.")
    else:
        unreachable = f"cannot be reached: {first}"
    return PassingFailure(
        f"The weights {weight.name!r} cannot be fetched: {host} {unreachable}. Check the network and the proxy "
        f"settings, or {by_hand(weight)}.",
        connected=False,
    )


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2] or url  # never a password


def _causes(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in found:
        found.append(current)
        current = current.__cause__ or current.__context__
    return found
