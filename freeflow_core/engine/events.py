"""Tells observers and trackers. They run on the main process, and cannot stop or change training."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, final

from torch import Tensor

from freeflow_core.interfaces import Tracker
from freeflow_core.plugin import Manager
from freeflow_core.types import Progress, RunInfo

_log = logging.getLogger("freeflow")


@final
class Events:
    """The only way from the run to observers and trackers. Silent on all but the main process."""

    def __init__(self, manager: Manager, trackers: list[Tracker], run: RunInfo, active: bool) -> None:
        self._hook = manager.hook
        self._trackers = trackers
        self._run = run
        self._active = active
        self._failed: set[str] = set()

    def started(self, states: list[dict[str, Any]]) -> None:
        """The first step is about to be taken; ``states`` are the trackers' own from a checkpoint, or empty."""
        for number, tracker in enumerate(self._trackers):
            self._track(tracker, "start", self._run, states[number] if number < len(states) else {})
        self._observe("freeflow_run_started", run=self._run)

    def stepped(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        """A logging interval has passed."""
        for tracker in self._trackers:
            self._track(tracker, "log_metrics", metrics, progress.images)
        self._observe("freeflow_step_finished", run=self._run, progress=progress, metrics=_frozen(metrics))

    def advanced(self, row: str, done: int, total: int) -> None:
        """An evaluation has scored ``done`` of ``total`` samples of a row."""
        self._observe("freeflow_evaluation_advanced", run=self._run, row=row, done=done, total=total)

    def evaluated(self, progress: Progress, scores: Mapping[str, float]) -> None:
        """An evaluation is complete."""
        for tracker in self._trackers:
            self._track(tracker, "log_metrics", scores, progress.images)
        self._observe("freeflow_evaluation_finished", run=self._run, progress=progress, scores=_frozen(scores))

    def pictured(self, name: str, image: Tensor, images_seen: int) -> None:
        """A picture was made."""
        for tracker in self._trackers:
            self._track(tracker, "log_images", name, image, images_seen)

    def saved(self, progress: Progress, path: Path) -> None:
        """A checkpoint is complete."""
        self._observe("freeflow_checkpoint_saved", run=self._run, progress=progress, path=path)

    def filed(self, path: Path, folder: str = "") -> None:
        """A file is worth keeping."""
        for tracker in self._trackers:
            self._track(tracker, "log_file", path, folder)

    def finished(self, status: str) -> None:
        """Always last."""
        for tracker in self._trackers:
            self._track(tracker, "finish", status)
        self._observe("freeflow_run_finished", run=self._run, status=status)

    def tracker_states(self) -> list[dict[str, Any]]:
        """What trackers want to find again after a restart."""
        return [self._track(tracker, "state") or {} for tracker in self._trackers] if self._active else []

    def _track(self, tracker: Tracker, method: str, *arguments: Any) -> Any:
        if not self._active:
            return None
        try:
            return getattr(tracker, method)(*arguments)
        except Exception as error:
            self._warn_once(f"tracker {type(tracker).__name__}", method, error)
            return None

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
