"""The cache of published weights."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

from freeflow_core.errors import DownloadError, Interrupted
from freeflow_core.plugin import WeightFile
from freeflow_core.weights.address import address_of
from freeflow_core.weights.cache import Place, Record, cache_folder
from freeflow_core.weights.content import check_not_html, check_sha256, check_size, hash_file, is_html, read_chunks
from freeflow_core.weights.download import Download
from freeflow_core.weights.lock import held_lock
from freeflow_core.weights.offline import offline_variable
from freeflow_core.weights.options import TransferOptions
from freeflow_core.weights.partial import PartialFile
from freeflow_core.weights.progress import OnProgress
from freeflow_core.weights.space import check_space, disk_failure
from freeflow_core.weights.text import by_hand, bypass

_LOG = logging.getLogger("freeflow")


@dataclass(frozen=True)
class WeightStatus:
    """What is known of a weight without reading its content.

    Args:
        weight: its declaration.
        path: where it is, or would be.
        cached: the file is there.
        size: bytes, of the file or as published, or None.
        sha256: as recorded when it came in, else as published, or None.
        partial: bytes of an unfinished download.
    """

    weight: WeightFile
    path: Path
    cached: bool
    size: int | None
    sha256: str | None
    partial: int


@final
class WeightStore:
    """Finds weights in the cache folder and puts them there. A file that has its final name is whole and checked.

    Args:
        folder: the cache; None for :func:`freeflow_core.weights.cache_folder`.
        options: how patient transfers are.
    """

    def __init__(self, folder: Path | None = None, options: TransferOptions | None = None) -> None:
        self.folder = folder if folder is not None else cache_folder()
        self._options = options or TransferOptions()

    def path(self, weight: WeightFile) -> Path:
        """Where the file is, or would be."""
        return Place.of(weight, self.folder).file

    def status(self, weight: WeightFile) -> WeightStatus:
        """For listings; reads no content, so it takes a file of the right name at its word."""
        place = Place.of(weight, self.folder)
        record = Record.read(place)
        size, partial = _size(place.file), _size(place.partial)
        sha256 = record.sha256 if record is not None and size is not None else weight.sha256
        return WeightStatus(
            weight, place.file, size is not None, size if size is not None else weight.size, sha256, partial or 0
        )

    def find(self, weight: WeightFile) -> Path | None:
        """The file if it is in the cache, else None. One that was put there by hand is checked first, once.

        Raises:
            DownloadError: the file there is damaged, or another one.
        """
        place = Place.of(weight, self.folder)
        size = _size(place.file)
        if size is None:
            return None
        record = Record.read(place)
        known = record is not None and record.size == size
        if record is not None and known and weight.sha256 in (None, record.sha256) and weight.size in (None, size):
            return place.file
        sha256 = self._hash(place.file)
        if record is not None and known and sha256 == record.sha256:
            _LOG.info("The cache holds an older version of the weights %r.", weight.name)
            return None  # as it was published once; the declaration has changed since
        self._check(weight, place, record, sha256)
        self._write_record(place, Record(size, sha256, "put there by hand"), instead_of=record)
        return place.file

    def fetch(self, weight: WeightFile, *, force: bool = False, on_progress: OnProgress | None = None) -> Path:
        """The file, downloaded unless it is in the cache.

        Args:
            force: download even then; the old file is replaced once the new one is whole.

        Raises:
            DownloadError: it cannot be fetched; the message says why and what to do.
            Interrupted: Ctrl-C; what has arrived is kept, and the next call goes on from there.
        """
        place = Place.of(weight, self.folder)
        if not force and (found := self.find(weight)) is not None:
            return found
        self._check_online(weight, place)
        address = address_of(weight, self._options)
        with self._writing(weight, place, on_progress):
            if not force and (found := self.find(weight)) is not None:
                return found  # another process has fetched it meanwhile
            with PartialFile(place, address.url) as partial:
                Download(weight, address, partial, self._options, on_progress).run()
                record = Record(partial.offset, partial.sha256, address.url)
            self._commit(place, place.partial, record)
        return place.file

    def add(self, weight: WeightFile, source: Path, *, on_progress: OnProgress | None = None) -> Path:
        """Copy a file that the user has got by other means into the cache, checked.

        Raises:
            DownloadError: it is not there, not the published file, or cannot be copied.
        """
        place = Place.of(weight, self.folder)
        source = Path(os.path.abspath(os.path.expanduser(source)))
        size = _size(source)
        if size is None:
            raise DownloadError(f"There is no file {source}. Expected a local copy of the weights {weight.name!r}.")
        check_size(weight, size, f"The file {source}")
        check_not_html(weight, f"The file {source}", is_page=is_html(_start(source)))
        with self._writing(weight, place, on_progress):
            check_space(weight, size, place.file.parent)
            try:
                digest, done = hashlib.sha256(), 0
                with place.incoming.open("wb") as file:
                    for chunk in read_chunks(source):
                        file.write(chunk)
                        digest.update(chunk)
                        done += len(chunk)
                        if on_progress is not None:
                            on_progress(done, size)
                check_sha256(weight, digest.hexdigest(), weight.sha256, f"The file {source}")
                self._commit(place, place.incoming, Record(done, digest.hexdigest(), str(source)))
            finally:
                place.incoming.unlink(missing_ok=True)
        return place.file

    def verify(self, weight: WeightFile, *, on_progress: OnProgress | None = None) -> str:
        """Read the whole file in the cache and compare; returns its SHA-256.

        Raises:
            DownloadError: it is not in the cache, damaged, or another file than published.
        """
        place = Place.of(weight, self.folder)
        size = _size(place.file)
        if size is None:
            raise DownloadError(
                f"The weights {weight.name!r} are not in the cache, at {place.file}. `freeflow fetch {weight.name}` "
                "fetches them."
            )
        sha256 = self._hash(place.file, on_progress)
        record = Record.read(place)
        self._check(weight, place, record, sha256)
        if record is None:
            self._write_record(place, Record(size, sha256, "put there by hand"), instead_of=None)
        return sha256

    def _check(self, weight: WeightFile, place: Place, record: Record | None, sha256: str) -> None:
        """Raise :class:`DownloadError` unless the file in the cache is the published or else the recorded one."""
        what = f"The file {place.file} in the cache"
        try:
            check_not_html(weight, what, is_page=is_html(_start(place.file)))
            check_size(weight, _size(place.file), what)
            check_sha256(weight, sha256, weight.sha256 or (record.sha256 if record is not None else None), what)
        except DownloadError as error:
            raise DownloadError(f"{error} `freeflow fetch {weight.name} --force` replaces it.") from None

    def _check_online(self, weight: WeightFile, place: Place) -> None:
        variable = offline_variable()
        if variable is None:
            return
        if weight.pattern is not None or (weight.url is None and weight.repository is None):
            way = by_hand(weight)
        else:
            way = f"download {address_of(weight, self._options).url} by hand to that place, or {bypass()}"
        there = _size(place.file) is not None
        state = f"can only be downloaded, not taken from {place.file}" if there else f"are not at {place.file}"
        raise DownloadError(
            f"The weights {weight.name!r} {state} in the cache, and {variable} forbids to fetch them. "
            f"Unset it, or {way}."
        )

    @contextlib.contextmanager
    def _writing(self, weight: WeightFile, place: Place, on_progress: OnProgress | None) -> Iterator[None]:
        """The folder of a weight, made and locked; what goes wrong inside becomes a :class:`DownloadError`."""
        try:
            place.file.parent.mkdir(parents=True, exist_ok=True)
            with held_lock(weight, place, self._options, on_progress):
                yield
        except OSError as error:
            raise disk_failure(place.file.parent, error) from error
        except KeyboardInterrupt as error:
            raise Interrupted(f"Fetching the weights {weight.name!r} was stopped.") from error

    def _commit(self, place: Place, complete: Path, record: Record) -> None:
        """Give a complete, checked file its name. Synced before, so that a crash cannot leave an empty file behind."""
        with complete.open("rb") as file:
            os.fsync(file.fileno())
        place.record.unlink(missing_ok=True)  # a crash in between costs one reading of the file, by ``find``
        os.replace(complete, place.file)
        record.write(place)
        for left in (place.partial, place.partial_state):
            left.unlink(missing_ok=True)

    def _hash(self, path: Path, on_progress: OnProgress | None = None) -> str:
        try:
            return hash_file(path, on_progress)
        except OSError as error:
            raise disk_failure(path, error) from error

    def _write_record(self, place: Place, record: Record, *, instead_of: Record | None) -> None:
        if Record.read(place) != instead_of:
            return  # while we read the file, another process has put a new one in its place
        with contextlib.suppress(OSError):  # a cache that others share may be read-only; then it is hashed again
            record.write(place)


def _size(path: Path) -> int | None:
    """Bytes of a file, or None when there is none."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(1024)
    except OSError as error:
        raise disk_failure(path, error) from error
