"""Writes the journal of a run, and tells observers and trackers, who cannot stop or change training."""

import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, final

from freeflow_core.interfaces import Tracker
from freeflow_core.interfaces.journal import Journal, Record
from freeflow_core.plugin import Manager
from freeflow_core.tracking import Sender
from freeflow_core.types import Progress, RunInfo

_log = logging.getLogger("freeflow")


@final
class Events:
    """The only way from the run to its journal, observers and trackers. Silent on all but the main process.

    Methods raise ``OSError`` when the journal cannot be written.
    """

    def __init__(self, manager: Manager, trackers: list[Tracker], run: RunInfo, active: bool) -> None:
        self._hook = manager.hook
        self._trackers = trackers
        self._run = run
        self._active = active
        self._images = 0
        self._failed: set[str] = set()
        self._senders: list[Sender] = []
        self.journal = Journal(run.folder)

    def started(self, images_seen: int = 0) -> None:
        self._images = images_seen
        for tracker in self._trackers if self._active else ():
            try:
                self._senders.append(Sender(tracker, self._run, self.journal))
            except Exception as error:
                self._warn_once(f"the tracker {type(tracker).__name__}", "start", error)
        self._observe("freeflow_run_started", run=self._run)

    def stepped(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        self._measured(progress, metrics)
        self._observe("freeflow_step_finished", run=self._run, progress=progress, metrics=_frozen(metrics))

    def advanced(self, row: str, done: int, total: int) -> None:
        self._observe("freeflow_evaluation_advanced", run=self._run, row=row, done=done, total=total)

    def evaluated(self, progress: Progress, scores: Mapping[str, float]) -> None:
        self._measured(progress, scores)
        self._observe("freeflow_evaluation_finished", run=self._run, progress=progress, scores=_frozen(scores))

    def pictured(self, name: str, path: Path, images_seen: int) -> None:
        if self._active:
            self._recorded(self.journal.add_picture(images_seen, name, path))

    def saved(self, progress: Progress, path: Path) -> None:
        self._observe("freeflow_checkpoint_saved", run=self._run, progress=progress, path=path)

    def filed(self, path: Path) -> None:
        if self._active:
            self._recorded(self.journal.add_file(self._images, path))

    def finished(self, status: str) -> None:
        for sender in self._senders:
            sender.finish(status)
        self._observe("freeflow_run_finished", run=self._run, status=status)

    def _measured(self, progress: Progress, values: Mapping[str, float]) -> None:
        if self._active:
            self._images = progress.images
            self._recorded(self.journal.add_metrics(progress.images, values))

    def _recorded(self, record: Record) -> None:
        for sender in self._senders:
            sender.recorded(record)

    def _observe(self, hook: str, **arguments: Any) -> None:
        if not self._active:
            return
        for implementation in getattr(self._hook, hook).get_hookimpls():  # one by one: none can silence another
            try:
                implementation.function(*(arguments[name] for name in implementation.argnames))
            except (Exception, SystemExit) as error:  # Ctrl-C is the user's, and passes
                self._warn_once(f"the observer {implementation.plugin_name!r}", hook, error)

    def _warn_once(self, who: str, what: str, error: BaseException) -> None:
        if (key := f"{who} {what}") not in self._failed:
            self._failed.add(key)
            _log.warning("%s failed in %s: %s: %s. The run goes on.", who, what, type(error).__name__, error)


def _frozen(values: Mapping[str, float]) -> Mapping[str, float]:
    """A copy that an observer keeps, or tries to write to, without any effect on what others are told."""
    return MappingProxyType(dict(values))
