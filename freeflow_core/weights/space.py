"""Room on the disk."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from freeflow_core.errors import DownloadError
from freeflow_core.plugin import WeightFile
from freeflow_core.weights.text import data_size

_FULL = (errno.ENOSPC, errno.EDQUOT)


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
    remedy = "Free some space" if error.errno in _FULL else "Check the disk and the permissions"
    return DownloadError(
        f"{error.filename or path} cannot be used: {error.strerror or error}. {remedy}, or choose another folder with "
        "FREEFLOW_CACHE."
    )
