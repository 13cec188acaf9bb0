"""The cache of published weights: what is there, and how it gets there."""

import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from filelock import FileLock, Timeout

from freeflow_core.errors import DownloadError, Interrupted
from freeflow_core.files import sync_file, write_text
from freeflow_core.plugin import Registry, WeightFile
from freeflow_core.weights.cache import (
    Content,
    OnProgress,
    Place,
    Record,
    Remote,
    cache_folder,
    data_size,
    file_size,
    offline_variable,
    read_content,
)
from freeflow_core.weights.download import Download, LoggedProgress, TransferOptions
from freeflow_core.weights.failures import BYPASS, by_hand, check, check_space, disk_failure
from freeflow_core.weights.hub import address_of, describe_origin, find_hub_copy, locate, stated_sha256

_LOG = logging.getLogger("freeflow")


def weights_by_name(registry: Registry) -> Callable[[str], Path]:
    """What a component gets as ``context.weights``: the path of published weights, fetched when they are not there yet.

    It raises ``UnknownComponent`` for a name that no plugin offers, ``DownloadError`` for weights that cannot be had.
    """

    def weights(name: str) -> Path:
        weight, store = registry.weight(name), WeightStore()  # late: the environment may change between two runs
        if (found := store.find(weight)) is not None:
            return found
        if offline_variable() is None and (weight.url or weight.repository):
            size = f" ({data_size(weight.size)})" if weight.size is not None else ""
            origin, path = describe_origin(weight), store.path(weight)
            _LOG.info("Fetching the weights %r%s from %s to %s.", name, size, origin, path)
        return store.fetch(weight, on_progress=LoggedProgress(name))

    return weights


@final
@dataclass(frozen=True)
class WeightStatus:
    """What is known of a weight without reading its content."""

    weight: WeightFile
    path: Path  # where it is, or would be
    cached: bool  # it is there, or in the user's Hugging Face cache
    size: int | None  # bytes, of the file or as published
    sha256: str | None  # as recorded when it came in, else as published
    partial: int  # bytes of an unfinished download


@final
class WeightStore:
    """Finds weights in the cache folder and puts them there. A file that has its final name is whole and checked.

    What the user's Hugging Face cache holds already is used where it lies: neither copied nor downloaded.

    Args:
        folder: the cache; None for :func:`freeflow_core.weights.cache_folder`.
        options: how patient transfers are.
    """

    def __init__(self, folder: Path | None = None, options: TransferOptions | None = None) -> None:
        self.folder = folder if folder is not None else cache_folder()
        self._options = options or TransferOptions()

    def path(self, weight: WeightFile) -> Path:
        """Where the file is in this cache, or would be."""
        return Place.of(weight, self.folder).file

    def status(self, weight: WeightFile) -> WeightStatus:
        """For listings; reads no content, so it takes a file of the right name at its word."""
        place = Place.of(weight, self.folder)
        size, partial = file_size(place.file), file_size(place.partial) or 0
        if size is not None:
            record = Record.read(place.record)
            return WeightStatus(weight, place.file, True, size, record.sha256 if record else weight.sha256, partial)
        if (copy := find_hub_copy(weight)) is not None:
            return WeightStatus(weight, copy, True, file_size(copy), weight.sha256 or stated_sha256(copy), 0)
        return WeightStatus(weight, place.file, False, weight.size, weight.sha256, partial)

    def find(self, weight: WeightFile) -> Path | None:
        """The file if it is here or in the user's Hugging Face cache, else None. One that was put here by hand is
        checked first, once; ``DownloadError`` when it is damaged, or another one."""
        place = Place.of(weight, self.folder)
        size = file_size(place.file)
        if size is None:
            return find_hub_copy(weight)
        record = Record.read(place.record)
        recorded = record.sha256 if record is not None and record.size == size else None
        if recorded is not None and weight.sha256 in (None, recorded) and weight.size in (None, size):
            return place.file
        content = self._read(place.file)
        if content.sha256 == recorded:  # as it was published once; the declaration has changed since
            _LOG.info("The cache holds an older version of the weights %r.", weight.name)
            return find_hub_copy(weight)
        self._accept(weight, place, record, content)
        return place.file

    def fetch(self, weight: WeightFile, *, force: bool = False, on_progress: OnProgress | None = None) -> Path:
        """The file, downloaded unless :meth:`find` has it; ``force``: even then, to replace that one.
        Where no digest is published, a file that differs from the first one fetched is refused without ``force``.

        Raises ``DownloadError``, which says what to do; ``Interrupted`` on Ctrl-C: the next call goes on from there.
        """
        place = Place.of(weight, self.folder)
        if not force and (found := self.find(weight)) is not None:
            return found
        self._check_online(weight, place)
        located = locate(weight, self._options.timeout)
        if not force and (found := find_hub_copy(located)) is not None:
            return found
        url, headers = address_of(located)
        with self._writing(weight, place, on_progress):
            if not force and (found := self.find(weight)) is not None:
                return found  # another process has fetched it meanwhile
            remembered = None if force else _remembered(place)
            record = Download(weight, url, headers, place, self._options, on_progress, remembered).run()
            self._commit(place, place.partial, record)
            if remembered != record.sha256:
                write_text(place.remembered, f"{record.sha256}\n")
        return place.file

    def add(self, weight: WeightFile, source: Path, *, on_progress: OnProgress | None = None) -> Path:
        """Copy a file got by other means into the cache; ``DownloadError`` unless it is the published one."""
        place = Place.of(weight, self.folder)
        source = Path(os.path.abspath(os.path.expanduser(source)))
        if (size := file_size(source)) is None:
            raise DownloadError(f"There is no file {source}. Expected a local copy of the weights {weight.name!r}.")
        what = f"The file {source}"
        check(weight, what, size=size)
        with self._writing(weight, place, on_progress):
            check_space(weight, size, place.file.parent)
            try:
                with place.incoming.open("wb") as file:
                    content = read_content(source, on_progress, copy_to=file)
                check(weight, what, **content._asdict())
                record = Record(size=content.size, sha256=content.sha256, origin=str(source))
                self._commit(place, place.incoming, record)
            finally:
                place.incoming.unlink(missing_ok=True)
        return place.file

    def verify(self, weight: WeightFile, *, on_progress: OnProgress | None = None) -> str:
        """Read the whole file in the cache; its SHA-256, or ``DownloadError`` unless it is the published one."""
        place = Place.of(weight, self.folder)
        if file_size(place.file) is not None:
            content = self._read(place.file, on_progress)
            self._accept(weight, place, Record.read(place.record), content)
        elif (copy := find_hub_copy(weight)) is not None:
            content = self._read(copy, on_progress)
            check(weight, f"The file {copy}", **content._asdict(), expected_sha256=stated_sha256(copy))
        else:
            raise DownloadError(
                f"The weights {weight.name!r} are not in the cache, at {place.file}. `freeflow fetch {weight.name}` "
                "fetches them."
            )
        return content.sha256

    def _accept(self, weight: WeightFile, place: Place, record: Record | None, content: Content) -> None:
        """Record what the cache holds; ``DownloadError`` unless it is the published file, or else the recorded one."""
        recorded = record.sha256 if record is not None else None
        try:
            check(weight, f"The file {place.file} in the cache", **content._asdict(), expected_sha256=recorded)
        except DownloadError as error:
            raise DownloadError(f"{error} `freeflow fetch {weight.name} --force` replaces it.") from None
        unchanged = Record.read(place.record) == record  # else another process has put a new file in its place
        if unchanged and content.sha256 != recorded:
            with contextlib.suppress(OSError):  # a cache that others share may be read-only; then it is read again
                Record(size=content.size, sha256=content.sha256, origin="put there by hand").write(place.record)

    def _check_online(self, weight: WeightFile, place: Place) -> None:
        if (variable := offline_variable()) is None:
            return
        way = by_hand(weight)
        if weight.url is not None or (weight.repository is not None and weight.pattern is None):
            way = f"download {address_of(weight)[0]} by hand to that place, or {BYPASS}"
        state = "are not" if file_size(place.file) is None else "can only be downloaded, not taken from what is"
        raise DownloadError(
            f"The weights {weight.name!r} {state} at {place.file} in the cache, and {variable} forbids to fetch them. "
            f"Unset it, or {way}."
        )

    @contextlib.contextmanager
    def _writing(self, weight: WeightFile, place: Place, on_progress: OnProgress | None) -> Iterator[None]:
        """The folder of a weight, made and locked; what goes wrong inside becomes a :class:`DownloadError`."""
        try:
            place.file.parent.mkdir(parents=True, exist_ok=True)
            with self._acquired(weight, place, on_progress):
                yield
        except KeyboardInterrupt as error:
            raise Interrupted(f"The download of {weight.name!r} was stopped.{_kept(weight, place)}") from error
        except DownloadError as error:
            raise DownloadError(f"{error}{_kept(weight, place)}") from error.__cause__
        except OSError as error:
            raise DownloadError(f"{disk_failure(place.file.parent, error)}{_kept(weight, place)}") from error

    def _acquired(
        self, weight: WeightFile, place: Place, on_progress: OnProgress | None
    ) -> AbstractContextManager[Any]:
        """One process fetches; the others wait, as long as they see it getting on, and report its progress as ours."""
        lock, seen, since = FileLock(place.lock), None, time.monotonic()
        while True:
            try:
                return lock.acquire(timeout=0 if seen is None else self._options.lock_poll)
            except NotImplementedError as error:
                raise OSError(f"the file system supports no locks ({error})") from error
            except Timeout as error:
                if seen is None:
                    _LOG.info("Waiting for another process, which is fetching the weights %r.", weight.name)
                size = max(file_size(place.partial) or 0, file_size(place.incoming) or 0)
                if size != seen:
                    seen, since = size, time.monotonic()
                    if on_progress is not None and size:
                        on_progress(size, _whole_size(weight, place))
                elif time.monotonic() - since > self._options.lock_patience:
                    raise DownloadError(
                        f"Another process holds {place.lock} but has not got on with the weights {weight.name!r} for "
                        f"{self._options.lock_patience:.0f} seconds. End it (it may hang on another machine that "
                        "shares this folder), then run the same command again."
                    ) from error

    def _commit(self, place: Place, complete: Path, record: Record) -> None:
        """Give a complete, checked file its name. Synced before, so that a crash cannot leave an empty file behind."""
        sync_file(complete)
        place.record.unlink(missing_ok=True)  # a crash in between costs one reading of the file, by ``find``
        os.replace(complete, place.file)
        record.write(place.record)
        place.partial.unlink(missing_ok=True)
        place.partial_state.unlink(missing_ok=True)

    def _read(self, path: Path, on_progress: OnProgress | None = None) -> Content:
        try:
            return read_content(path, on_progress)
        except OSError as error:
            raise disk_failure(path, error) from error


def _remembered(place: Place) -> str | None:
    """The digest of the first download, which a later one must have."""
    try:
        found = place.remembered.read_text("ascii").strip()
    except (OSError, ValueError):
        return None
    return found if re.fullmatch("[0-9a-f]{64}", found) else None


def _kept(weight: WeightFile, place: Place) -> str:
    """What an unfinished download leaves for the next attempt, as a sentence; empty where that is nothing."""
    if not (done := file_size(place.partial)):
        return ""
    size = _whole_size(weight, place)
    amount = data_size(done) + (f" of {data_size(size)}" if size is not None else "")
    return f" {amount} are kept in {place.partial}; the same command goes on from there."


def _whole_size(weight: WeightFile, place: Place) -> int | None:
    """Bytes of what ``place.partial`` is the beginning of, where known."""
    remote = Remote.read(place.partial_state)
    return (remote.size if remote is not None else None) or weight.size
