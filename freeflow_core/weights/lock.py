"""One process fetches; the others wait, as long as they see it getting on."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from freeflow_core.errors import DownloadError
from freeflow_core.plugin import WeightFile
from freeflow_core.weights.cache import Place, read_json
from freeflow_core.weights.options import TransferOptions
from freeflow_core.weights.progress import OnProgress

_LOG = logging.getLogger("freeflow")


@contextmanager
def held_lock(
    weight: WeightFile, place: Place, options: TransferOptions, on_progress: OnProgress | None
) -> Iterator[None]:
    """Hold the lock of a weight's folder. While another process holds it, its progress is reported as ours.

    Raises:
        DownloadError: the other process stands still, or no lock can be had in this folder.
    """
    lock = FileLock(place.lock)
    _acquire(lock, weight, place, options, on_progress)
    try:
        yield
    finally:
        lock.release()


def _acquire(
    lock: FileLock, weight: WeightFile, place: Place, options: TransferOptions, on_progress: OnProgress | None
) -> None:
    seen, since, told = -1, time.monotonic(), False
    while True:
        try:
            lock.acquire(timeout=options.lock_poll if told else 0)
            return
        except Timeout as error:
            size, total = _other_progress(place)
            if size != seen:
                seen, since = size, time.monotonic()
                if on_progress is not None and size:
                    on_progress(size, total or weight.size)
            elif time.monotonic() - since > options.lock_patience:
                raise DownloadError(
                    f"Another process holds {place.lock} but has not got on with the weights {weight.name!r} for "
                    f"{options.lock_patience:.0f} seconds. End it (it may hang on another machine that shares this "
                    "folder), then run the same command again."
                ) from error
            if not told:
                told = True
                _LOG.info("Waiting for another process, which is fetching the weights %r.", weight.name)
        except (OSError, NotImplementedError) as error:
            raise DownloadError(
                f"{place.lock} cannot be locked: {error}. Choose another folder with FREEFLOW_CACHE, on a file system "
                "that you may write to and that supports locks."
            ) from error


def _other_progress(place: Place) -> tuple[int, int | None]:
    size = 0
    for path in (place.partial, place.incoming):
        try:
            size = max(size, path.stat().st_size)
        except OSError:
            continue
    total = read_json(place.partial_state).get("size")
    return size, total if isinstance(total, int) else None
