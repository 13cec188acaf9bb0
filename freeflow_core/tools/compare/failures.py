"""What a failed run says, and which failures end the whole comparison."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from freeflow_core.errors import ConfigError, FreeflowError, Interrupted


def describe(error: BaseException) -> str:
    """An exception as one sentence."""
    text = " ".join(str(error).split())
    if not isinstance(error, FreeflowError):
        text = f"{type(error).__name__}: {text}".rstrip(": ")
    return text if text.endswith(".") else f"{text}."


def disk_is_full(error: BaseException | None) -> bool:
    """Whether a full disk, or a used-up quota, is at the bottom of ``error``."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if os.strerror(errno.ENOSPC) in str(error):  # from libraries that have errors of their own
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def full_disk_reported(folder: Path) -> Iterator[None]:
    """A full disk ends the comparison, since every further run would fail by it; other errors pass."""
    try:
        yield
    except (Interrupted, ConfigError):
        raise
    except Exception as error:
        if disk_is_full(error):
            raise FreeflowError(
                f"The disk is full: the comparison in {folder} stopped ({describe(error)}) What was finished is kept. "
                "Free some space, then run the same command again: it goes on where it stopped."
            ) from error
        if isinstance(error, OSError):
            raise FreeflowError(f"{folder} cannot be written: {error}.") from error
        raise
