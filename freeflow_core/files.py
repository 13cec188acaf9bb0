"""Files that are whole, or not there."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; the end of the block renames it. A failure leaves nothing behind.

    ``sync``: force the content to disk first, so that even a crash of the machine leaves no empty file of that name.

    Raises ``OSError``: the disk is full, or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if sync:
            sync_file(temporary)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # such as a parent that is a file, which is then the error to tell
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all. Raises ``OSError``."""
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8")


def sync_file(path: Path) -> None:
    """Force a file's content to disk, so that a rename never names an empty file after a crash."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
