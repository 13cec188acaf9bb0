"""Arrays of an .npz file: mapped where they are stored uncompressed, loaded where not."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from freeflow_core.errors import ConfigError

_LOCAL_HEADER = 30


def array_names(path: Path) -> list[str]:
    """Names of the arrays in the file. Raises ``ConfigError`` when it is no .npz file, or was cut off."""
    try:
        with zipfile.ZipFile(path) as file:
            return [name.removesuffix(".npy") for name in file.namelist()]
    except OSError as error:
        raise ConfigError(f"The npz file {path} cannot be read: {error}. Check source.path.") from None
    except zipfile.BadZipFile:
        raise ConfigError(
            f"{path} is not an .npz file, or was cut off: {path.stat().st_size:,} bytes without the table of contents "
            "that ends one. Copy it again, or write it with numpy.savez."
        ) from None


def open_array(path: Path, name: str) -> npt.NDArray[Any]:
    """One array, read-only; nothing in the file is executed.

    Raises:
        ConfigError: the array is damaged or cut off, or holds Python objects.
    """
    try:
        with zipfile.ZipFile(path) as file:
            member = file.getinfo(f"{name}.npy")
            if member.compress_type == zipfile.ZIP_STORED:
                return _mapped(path, member)
            with file.open(member) as stream:
                loaded: npt.NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
                return loaded
    except (OSError, ValueError, EOFError, KeyError, struct.error, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(
            f"The array {name!r} of {path} cannot be read: {error}. Expected a whole array of numbers; write the file "
            "again with numpy.savez."
        ) from None


def _mapped(path: Path, member: zipfile.ZipInfo) -> npt.NDArray[Any]:
    """numpy maps .npy files but not those inside a zip, so find where the member's bytes begin and map them there."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        header = file.read(_LOCAL_HEADER)
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        file.seek(member.header_offset + _LOCAL_HEADER + name_length + extra_length)
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise ValueError(f"its .npy version {version} is not known")
        shape, fortran_order, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran_order else "C")
