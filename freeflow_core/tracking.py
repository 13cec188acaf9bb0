"""Brings trackers up to the journal in the run folder: during the run, after it, and whoever was killed when."""

import itertools
import json
import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, final

from filelock import FileLock, Timeout

from freeflow_core.errors import ConfigError, FreeflowError
from freeflow_core.files import remove_leftovers, write_text
from freeflow_core.interfaces import Tracker
from freeflow_core.interfaces.journal import START, Journal, Metrics, Place, Record, now
from freeflow_core.plugin.culprit import described
from freeflow_core.types import RunInfo

FOLDER = "trackers"
MASK = "***"
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@'\"]+(?=@)")
_VALUES_PER_REQUEST = 1000
_RETRY_INTERVALS = 6
_log = logging.getLogger("freeflow")


@dataclass
class Sent:
    """What arrived, in metric values and artifacts, and why other artifacts never can."""

    metrics: int = 0
    artifacts: int = 0
    skipped: list[str] = field(default_factory=list)


@final
class Replay:
    """One tracker on one journal. How far it has come is in ``<run folder>/trackers/<store>.json``, replaced after each
    request; a tracker that is opened learns it, and knows by that what may have arrived without being noted.

    Attributes:
        notes: the tracker's own JSON values, kept there too.
        sent: by this object.
    """

    def __init__(self, tracker: Tracker, run: RunInfo, journal: Journal) -> None:
        self.notes: dict[str, Any] = {}
        self.sent = Sent()
        self._tracker, self._run, self._journal = tracker, run, journal
        name = sha256(tracker.store(run).encode()).hexdigest()[:12]
        self._file = journal.folder / FOLDER / f"{name}.json"
        self._metrics = self._artifacts = START
        self._status: str | None = None  # how the run ended, once the tracker was told
        self._is_open = False
        self._load()

    @contextmanager
    def alone(self, *, wait: bool = False) -> Iterator[None]:
        """Keep other processes from sending the same.

        Raises ``ConfigError``: one does, and this one is not to ``wait``.
        """
        self._file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self._file.with_suffix(".lock"), timeout=-1 if wait else 0):
                remove_leftovers(self._file.parent, f".{self._file.name}.*.partial")
                self._load()
                yield
        except Timeout as error:
            raise ConfigError(
                f"The run {self._run.name!r} is still going on, and sends its records itself. Wait until it has ended."
            ) from error

    def is_complete(self) -> bool:
        rest = (*self._journal.metrics(self._metrics), *self._journal.artifacts(self._artifacts))
        return not rest and self._status is not None and self._stands()

    def send(self) -> None:
        """All that is new; artifacts last, so that a place for files that fails holds up no metric.

        Raises ``Exception``: what the tracker raises; the next call opens it anew and goes on.
        """
        try:
            if not self._is_open:
                self._open()
            self._send_metrics()
            self._send_artifacts()
        except Exception:
            self._is_open = False
            raise

    def end(self, status: str, time: float) -> None:
        self._tracker.finish(status, time)
        self._status = status
        self.save()

    def _load(self) -> None:
        if self._file.is_file():
            kept = json.loads(self._file.read_text("utf-8"))
            self._metrics, self._artifacts = Place(*kept["metrics"]), Place(*kept["artifacts"])
            self._status, self.notes = kept["status"], kept["notes"]

    def _open(self) -> None:
        if not self._stands():
            self._metrics = self._artifacts = START
        arrived = [record.images for record, place in self._journal.metrics() if place.bytes <= self._metrics.bytes]
        if not self._tracker.open(self._run, self._journal, self.notes, arrived[-1] if arrived else None):
            self._metrics = self._artifacts = START
        self._status, self._is_open = None, True
        self.save()

    def _send_metrics(self) -> None:
        new = list(self._journal.metrics(self._metrics))
        while new:
            values = itertools.accumulate(len(record.values) for record, _ in new)
            count = max(1, sum(total <= _VALUES_PER_REQUEST for total in values))
            notes = json.loads(json.dumps(self.notes))
            self.sent.metrics += self._tracker.send_metrics([record for record, _ in new[:count]], notes)
            self._metrics, self.notes = new[count - 1][1], notes
            self.save()
            del new[:count]

    def _send_artifacts(self) -> None:
        for artifact, place in self._journal.artifacts(self._artifacts):
            if artifact.path.exists():
                self.sent.artifacts += self._tracker.send_artifact(artifact)
            else:
                self.sent.skipped.append(f"{artifact.path} no longer exists")
            self._artifacts = place
            self.save()

    def _stands(self) -> bool:
        """False after a resumed run cut its journal before the place that was reached."""
        return self._journal.stands(self._metrics, self._artifacts)

    def save(self) -> None:
        """Also before anything arrived, so that it is known where the run was to go."""
        kept: dict[str, Any] = {"metrics": self._metrics, "artifacts": self._artifacts, "status": self._status}
        kept |= {"options": self._tracker.options(self._run), "notes": self.notes}
        self._file.parent.mkdir(exist_ok=True)  # not the run's folder, which may have been removed
        write_text(self._file, json.dumps(kept, indent=1), make_folder=False)


@final
class Sender:
    """Replays to one tracker in a thread, while the run goes on. One that fails is warned of once, and tried again."""

    THREAD = "freeflow-tracker"

    def __init__(self, tracker: Tracker, run: RunInfo, journal: Journal) -> None:
        self._tracker, self._folder = tracker, run.folder
        self._where = tracker.store(run)
        self._replay = Replay(tracker, run, journal)
        self._wake = threading.Event()
        self._status: str | None = None
        self._waiting = 0
        self._retry_at = 0.0
        self._warned = False
        self._thread = threading.Thread(target=self._work, name=self.THREAD, daemon=True)
        self._thread.start()

    def recorded(self, record: Record) -> None:
        self._waiting += len(record.values) if isinstance(record, Metrics) else 0
        if self._waiting >= self._tracker.buffer_metrics:
            self._wake.set()

    def finish(self, status: str) -> None:
        """Send the rest, in at most ``finish_seconds``."""
        self._status = status
        self._wake.set()
        self._thread.join(self._tracker.finish_seconds)
        if self._thread.is_alive():
            self._warn(f"{self._where} did not take everything within {self._tracker.finish_seconds:g} seconds")

    def _work(self) -> None:
        try:
            with self._replay.alone(wait=True):  # for a `sync_command` that is at work
                self._replay.save()
                while self._status is None:
                    if time.monotonic() >= self._retry_at:
                        self._send()
                    self._wake.wait(self._tracker.flush_seconds)
                    self._waiting = 0
                    self._wake.clear()
                self._send()
        except Exception as error:
            self._warn(f"{self._where} is told nothing of this run ({describe(error)})")

    def _send(self) -> None:
        status = self._status
        try:
            self._replay.send()
            if status is not None:
                self._replay.end(status, now())
        except Exception as error:
            self._retry_at = time.monotonic() + _RETRY_INTERVALS * self._tracker.flush_seconds
            self._warn(f"{self._where} cannot be reached or written to ({describe(error)})")
        for text in self._replay.sent.skipped[:1] if status is not None else ():
            _log.warning("Not sent to %s: %s.", self._where, text)

    def _warn(self, problem: str) -> None:
        """One line in a run's life: what fails at the start mostly fails at the end as well."""
        if not self._warned:
            self._warned = True
            command = self._tracker.sync_command
            later = f", and can be sent later with `{command} {self._folder}`" if command else ""
            told = "Training is not affected; the run folder has everything, which is tried again during the run"
            _log.warning("%s. %s%s.", problem, told, later)


def send_unsent(tracker: Tracker, folder: Path) -> Sent | None:
    """Send what ``tracker`` lacks of the run in ``folder``; None when it has everything.

    Raises:
        ConfigError: no run there, or one that is still going on.
        FreeflowError: the tracker fails. What had not arrived is sent the next time.
    """
    journal = Journal(folder)
    run, status = journal.run(), journal.status()
    replay = Replay(tracker, run, journal)
    with replay.alone():
        if replay.is_complete():
            return None
        ended = status.get("ended") or max((m.time for m, _ in journal.metrics()), default=status.get("started", 0.0))
        killed = status.get("status") in (None, "running")  # such a process could not say how its run ended
        try:
            replay.send()
            replay.end("interrupted" if killed else status["status"], ended)
        except FreeflowError:
            raise
        except Exception as error:
            raise FreeflowError(
                f"{tracker.store(run)} cannot be reached or written to ({describe(error)}). The run is whole in "
                f"{folder}; run this again when the place is there, or name another one."
            ) from error
    return replay.sent


def kept_options(folder: Path) -> list[dict[str, Any]]:
    """Of the trackers of the run in ``folder``, one for each store."""
    return [json.loads(file.read_text("utf-8"))["options"] for file in sorted((folder / FOLDER).glob("*.json"))]


def redact(text: str) -> str:
    """``text`` with ``user:password@`` in addresses masked."""
    return _CREDENTIALS.sub(MASK, text)


def describe(error: Exception) -> str:
    """An exception in one line without credentials: a short one, unless it says itself what to do."""
    if isinstance(error, FreeflowError):
        return redact(" ".join(str(error).split())).rstrip(".")
    text = redact(described(error))
    return text if len(text) <= 240 else f"{text[:237]}..."
