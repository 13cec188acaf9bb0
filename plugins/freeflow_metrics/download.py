"""Files fetched once and kept: whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import urllib.request
from pathlib import Path

from freeflow_core.errors import ConfigError
from freeflow_core.weights import offline_variable

_TIMEOUT_SECONDS = 30


def fetch_once(url: str, folder: Path, remedy: str) -> Path:
    """``folder`` / the url's file name, downloaded if it is not there.

    Written to a temporary file beside it and renamed, so that an interrupted download never passes for a whole file
    and processes that download at the same time do not disturb each other.

    Raises:
        ConfigError: no network or none allowed, no such file, or no room; ``remedy`` says what to do instead.
    """
    path = folder / url.rsplit("/", 1)[-1]
    if path.is_file():
        return path
    if (variable := offline_variable()) is not None:
        raise ConfigError(f"{url} is not in {folder}, and {variable} is set, so it is not downloaded. {remedy}")
    temporary: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response,
            tempfile.NamedTemporaryFile(dir=folder, prefix=f".{path.name}.", delete=False) as file,
        ):
            temporary = Path(file.name)
            shutil.copyfileobj(response, file)
            _check_length(response.headers.get("Content-Length"), file.tell(), url)
        os.replace(temporary, path)
    except OSError as error:  # urllib's errors are OSErrors
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise ConfigError(f"{url} could not be downloaded to {folder} ({error}). {remedy}") from error
    return path


def _check_length(announced: str | None, received: int, url: str) -> None:
    if announced is not None and int(announced) != received:
        raise OSError(f"{url} broke off after {received} of {announced} bytes")
