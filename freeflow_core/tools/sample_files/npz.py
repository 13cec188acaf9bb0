"""An ``.npz`` of any size, written as a stream: no array is ever whole in memory."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from freeflow_core.files import replacing

_EARLIEST = (1980, 1, 1, 0, 0, 0)
"""No clock time in the archive, so that equal samples make equal files."""


@dataclass(frozen=True)
class StreamedArray:
    """An array (rows, *row_shape) that comes in ``chunks`` along its first axis."""

    rows: int
    row_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: Iterable[np.ndarray]


def write_npz(path: Path, arrays: Mapping[str, StreamedArray]) -> None:
    """Write the arrays, uncompressed, as ``np.savez`` lays them out; ``np.load`` and ADM's evaluator read them.

    Raises:
        OSError: the disk is full. Nothing is left at ``path`` that was not there before.
    """
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", date_time=_EARLIEST)
            with archive.open(member, "w", force_zip64=True) as stream:
                _write_npy(stream, array)


def _write_npy(stream: IO[bytes], array: StreamedArray) -> None:
    header = {
        "descr": np.lib.format.dtype_to_descr(array.dtype),
        "fortran_order": False,
        "shape": (array.rows, *array.row_shape),
    }
    np.lib.format.write_array_header_1_0(stream, header)
    rows = 0
    for chunk in array.chunks:
        assert (chunk.shape[1:], chunk.dtype) == (array.row_shape, array.dtype)
        stream.write(np.ascontiguousarray(chunk).data)
        rows += len(chunk)
    assert rows == array.rows
