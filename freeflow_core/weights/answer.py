"""What an HTTP answer says of the file that it carries."""

from __future__ import annotations

import re

import requests

from freeflow_core.weights.partial import Remote

_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_SHA256 = re.compile(r'"?([0-9a-f]{64})"?')


def remote_of(response: requests.Response, url: str) -> Remote:
    """The version of the file that the answer to a request for ``url`` carries, whole (200) or in part (206)."""
    headers = response.headers
    match = _CONTENT_RANGE.match(headers.get("Content-Range", ""))
    length = headers.get("Content-Length", "") if response.status_code == 200 else match[2] if match else ""
    if headers.get("Content-Encoding", "identity") != "identity":
        return Remote(url)  # lengths and ranges are those of the encoded form
    return Remote(
        url,
        size=int(length) if length.isdecimal() else None,
        etag=headers.get("ETag"),
        last_modified=headers.get("Last-Modified"),
    )


def hub_sha256(response: requests.Response) -> str | None:
    """SHA-256 of a large file on the hub, which states it before it redirects to where the file lies."""
    for answer in (*response.history, response):
        match = _SHA256.fullmatch(answer.headers.get("X-Linked-Etag", ""))
        if match is not None:
            return match[1]
    return None


def range_start(response: requests.Response) -> int | None:
    """Position of the first byte of a partial answer."""
    match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
    return int(match[1]) if match is not None else None


def is_html_type(response: requests.Response) -> bool:
    """Whether the answer calls itself a web page."""
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return kind in ("text/html", "application/xhtml+xml")


def retry_after(response: requests.Response) -> float:
    """Seconds that the server asks to wait; a date, the header's other form, counts as none."""
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else 0.0
