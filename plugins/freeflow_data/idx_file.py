"""The idx format of MNIST: a magic number, the sizes, then the bytes."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from freeflow_core.errors import ConfigError

_UBYTE = 0x08
_KINDS = {1: "labels", 3: "images"}
_CHUNK = 1 << 20


@dataclass(frozen=True)
class IdxFile:
    """The whole rows of an idx file: ``values`` uint8 (M, ...), M at most the ``promised`` number of its header."""

    path: Path
    values: npt.NDArray[np.uint8]
    promised: int


def find_idx(folder: Path, name: str) -> Path:
    """``name`` in a folder, or ``name.gz``; also spelt with a dot, as some copies are (``train-images.idx3-ubyte``).

    Raises:
        ConfigError: there is none.
    """
    dotted = name.replace("-idx", ".idx")
    for candidate in (name, f"{name}.gz", dotted, f"{dotted}.gz"):
        if (folder / candidate).is_file():
            return folder / candidate
    raise ConfigError(
        f"There is no {name} or {name}.gz in {folder}. Expected the data set's idx files there; nothing is "
        "downloaded. Put them in that folder, or name another one: source.path=FOLDER."
    )


def read_idx(path: Path, dimensions: int) -> IdxFile:
    """An idx file of uint8 with ``dimensions`` (1: labels, 3: images), decompressed when it ends in ``.gz``.

    A file that ends too early gives the rows that are whole.

    Raises:
        ConfigError: it cannot be read, has another magic number, or holds more than its header says.
    """
    content = _read(path)
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != _magic(dimensions):
        came = f"begins with 0x{content[:4].hex()}" if len(content) >= start else f"holds {len(content)} bytes"
        others = [
            f", as a file of {kind} does"
            for d, kind in _KINDS.items()
            if content[:4] == _magic(d) != _magic(dimensions)
        ]
        raise ConfigError(
            f"{path} is not an idx file of {_KINDS[dimensions]}, which begins with 0x{_magic(dimensions).hex()}: it "
            f"{came}{''.join(others)}. Check that the files were not mixed up, renamed or cut off."
        )
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    row = math.prod(shape[1:])
    held = (len(content) - start) // row if row else 0
    if held < shape[0]:
        values = np.frombuffer(content, np.uint8, held * row, start)
    elif len(content) - start > shape[0] * row:
        raise ConfigError(
            f"{path} holds {len(content) - start:,} bytes after its header, which promises {shape[0]:,} x {row:,}. "
            "The file is damaged; copy it again."
        )
    else:
        values = np.frombuffer(content, np.uint8, -1, start)
    return IdxFile(path, values.reshape(min(held, shape[0]), *shape[1:]), shape[0])


def _magic(dimensions: int) -> bytes:
    return bytes((0, 0, _UBYTE, dimensions))


def _read(path: Path) -> bytes:
    """The whole file, or what a cut-off compressed one still gives."""
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        parts = []
        with gzip.open(path) as file:
            try:
                while part := file.read1(_CHUNK):
                    parts.append(part)
            except EOFError:  # cut off; what came before it is whole
                pass
        return b"".join(parts)
    except (OSError, zlib.error) as error:
        raise ConfigError(f"{path} cannot be read: {error}. It is damaged; copy it again.") from None
