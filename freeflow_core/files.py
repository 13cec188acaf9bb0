"""Files that are whole, or not there; and claims of processes on work that they share through a folder."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout


@contextlib.contextmanager
def replacing(path: Path, *, sync: bool = True, make_folder: bool = True) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; the end of the block renames it. A failure leaves nothing behind.

    Args:
        sync: force the content to disk first, so that even a crash of the machine leaves no empty file of that name.
        make_folder: False: the folder has to be there, so that one that was removed stays so.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if sync:
            sync_file(temporary)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # such as a parent that is a file, which is then the error to tell
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, make_folder: bool = True) -> None:
    """Write a text file in UTF-8, whole or not at all, as :func:`replacing` does. Raises ``OSError``."""
    with replacing(path, make_folder=make_folder) as temporary:
        temporary.write_text(text, "utf-8")


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether this process alone holds the lock on the file ``path`` meanwhile; it does not wait for it.

    The lock is the system's: it goes with the process, however that ends. The folder of ``path`` is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def remove_leftovers(folder: Path, pattern: str = ".*.partial") -> None:
    """Remove what processes that were killed inside :func:`replacing` left in ``folder``, whose only writer calls."""
    for left in folder.glob(pattern):
        with contextlib.suppress(OSError):
            left.unlink()


def sync_folder(path: Path) -> None:
    """Force the names in a folder to disk, where the system can."""
    if os.name == "posix":
        sync_file(path)


def sync_file(path: Path) -> None:
    """Force a file's content to disk, so that a rename never names an empty file after a crash."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
