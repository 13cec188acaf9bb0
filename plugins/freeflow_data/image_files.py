"""Which images a folder holds."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from freeflow_core.errors import ConfigError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Listing:
    """Images under ``root``, by path relative to it with ``/``, sorted; and sub-folders of it without any."""

    root: Path
    files: list[str]
    empty_folders: list[str]


def list_images(root: Path) -> Listing:
    """Every image under ``root``, links followed; names that begin with a dot are passed over.

    Raises:
        ConfigError: there is no such folder, it cannot be read, or it holds no image.
    """
    if not root.is_dir():
        raise ConfigError(f"There is no folder {root} with images. Check source.path; a relative path starts here.")
    files: list[str] = []
    others: Counter[str] = Counter()
    try:
        for name in _walk(root):
            suffix = os.path.splitext(name)[1].lower()
            if suffix in SUFFIXES:
                files.append(name)
            else:
                others[suffix or name] += 1
        folders = sorted(e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        raise ConfigError(f"The image folder {root} cannot be read: {error}.") from None
    if not files:
        found = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(4))
        raise ConfigError(
            f"The image folder {root} holds no image ({', '.join(SUFFIXES)}) at any depth; "
            + (f"other files: {found}. " if others else "it is empty. ")
            + "Check source.path, or convert the images."
        )
    filled = {name.split("/", 1)[0] for name in files if "/" in name}
    return Listing(root, sorted(files), [name for name in folders if name not in filled])


def _walk(root: Path) -> Iterator[str]:
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, onerror=_raise, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(folder).relative_to(root).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        yield from (prefix + name for name in names if not name.startswith("."))


def _raise(error: OSError) -> None:
    raise error
