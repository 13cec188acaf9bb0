"""The observers. Each says what has happened, and has the page written again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import final

from freeflow_core.plugin import hookimpl
from freeflow_core.types import Progress, RunInfo
from freeflow_live_page.files import write_whole
from freeflow_live_page.page import render
from freeflow_live_page.record import Record

PAGE = "live.html"
SECONDS_BETWEEN_PAGES = 1.0


@final
class LivePage:
    """Keeps ``live.html`` in the folder of every run that goes on in this process."""

    freeflow_api = "1"

    def __init__(self) -> None:
        self._records: dict[Path, Record] = {}
        self._written: dict[Path, float] = {}

    @hookimpl
    def freeflow_run_started(self, run: RunInfo) -> None:
        """A new page; a resumed run's begins with what it had logged before."""
        record = Record(run)
        if run.resumed:
            record.read_metrics(run.folder / "metrics.jsonl")
        self._records[run.folder] = record
        self._write(run, at_once=True)

    @hookimpl
    def freeflow_step_finished(self, run: RunInfo, progress: Progress, metrics: Mapping[str, float]) -> None:
        """The curves grow."""
        self._records[run.folder].add_metrics(progress, metrics)
        self._write(run)

    @hookimpl
    def freeflow_evaluation_advanced(self, run: RunInfo, row: str, done: int, total: int) -> None:
        """What the run is busy with."""
        self._records[run.folder].busy = f"evaluating {row}: {done:,} of {total:,} samples"
        self._write(run)

    @hookimpl
    def freeflow_evaluation_finished(self, run: RunInfo, progress: Progress, scores: Mapping[str, float]) -> None:
        """A new table."""
        self._records[run.folder].set_scores(progress, scores)
        self._write(run, at_once=True)

    @hookimpl
    def freeflow_checkpoint_saved(self, run: RunInfo, progress: Progress, path: Path) -> None:
        """Where one could go on from."""
        self._records[run.folder].checkpoint = path.name
        self._write(run)

    @hookimpl
    def freeflow_run_finished(self, run: RunInfo, status: str) -> None:
        """The last page, which does not reload."""
        self._records[run.folder].status = status
        self._write(run, at_once=True)
        del self._records[run.folder], self._written[run.folder]

    def _write(self, run: RunInfo, at_once: bool = False) -> None:
        """At most once a second: a page that nobody can read any faster must not cost the run time."""
        now = time.monotonic()
        if at_once or now - self._written.get(run.folder, 0.0) >= SECONDS_BETWEEN_PAGES:
            write_whole(run.folder / PAGE, render(self._records[run.folder]))
            self._written[run.folder] = now


observer = LivePage()
