"""One-file plugins beside a configuration: never loaded unasked, but an unknown name says that they are there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from freeflow_core.errors import UnknownComponent

_MAX_BYTES = 200_000
_MAX_FILES = 200


@contextmanager
def plugins_beside(file: Path | None) -> Iterator[None]:
    """Add to an :class:`UnknownComponent` raised inside which Python file beside ``file`` seems to offer it.

    Such a file is read as text. It is run only when the user names it, with ``--plugin``.
    """
    try:
        yield
    except UnknownComponent as error:
        if file is not None and (found := _offering(error.name, file.parent)):
            error.args = (
                f"{error} {found} beside the configuration seems to offer it, and is not loaded unless you ask: add "
                f"--plugin {found} (this runs the file).",
            )
        raise


def _offering(name: str, folder: Path) -> Path | None:
    """The first Python file of a folder that has hooks and writes ``name`` as a text."""
    try:
        files = sorted(folder.glob("*.py"))[:_MAX_FILES]
        for file in files:
            if file.stat().st_size > _MAX_BYTES:
                continue
            text = file.read_text("utf-8", errors="replace")
            if "hookimpl" in text and (f'"{name}"' in text or f"'{name}'" in text):
                return file
    except OSError:
        return None
    return None
