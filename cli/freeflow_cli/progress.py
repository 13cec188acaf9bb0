"""The run's progress on the console: an observer like any other plugin's, registered by the commands that train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, final

from rich.console import Console

from freeflow_cli import formats
from freeflow_cli.displays import Display, LineDisplay, LiveDisplay, main_losses
from freeflow_core.plugin import hookimpl

if TYPE_CHECKING:
    from freeflow_core.types import Progress, RunInfo

MAX_SCORES = 4
"""Scores shown after an evaluation during training."""


def choose_display(console: Console) -> Display:
    """A live bar for a terminal, lines for a pipe, a log file or a dumb terminal."""
    return LiveDisplay(console) if console.is_interactive else LineDisplay(console)


@final
class ProgressObserver:
    """Implements the observer hooks; shows nothing before the first event."""

    def __init__(self, console: Console, display: Callable[[Console], Display] = choose_display) -> None:
        self._display = display(console)

    @hookimpl
    def freeflow_run_started(self, run: RunInfo) -> None:
        """Name the run and its folder."""
        verb = "Resuming" if run.resumed else "Starting"
        self._display.note(f"{verb} {run.command} run {run.name!r} in {formats.path(run.folder)}")

    @hookimpl
    def freeflow_step_finished(self, run: RunInfo, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Images seen, speed, remaining time, and the main losses."""
        self._display.advance(
            run.command,
            min(progress.images, progress.total_images),
            progress.total_images,
            unit="images",
            rate=metrics.get("images_per_second"),
            details=main_losses(metrics),
        )

    @hookimpl
    def freeflow_evaluation_advanced(self, run: RunInfo, row: str, done: int, total: int) -> None:
        """Samples scored of one row."""
        title = f"evaluate {row.replace('_', ' ')}"
        self._display.advance(title, done, total, unit="samples", rate=None, details="")

    @hookimpl
    def freeflow_evaluation_finished(self, run: RunInfo, progress: Progress, scores: Mapping[str, float]) -> None:
        """A few scores of an evaluation during training; the one at the end is printed as a table."""
        if progress.images >= progress.total_images:
            return
        shown = [
            (name, value) for name, value in scores.items() if not name.endswith(("/evaluations", "/ms_per_image"))
        ]
        text = ", ".join(
            f"{name.removeprefix('evaluation/')} {formats.number(value)}" for name, value in shown[:MAX_SCORES]
        )
        more = f", and {len(shown) - MAX_SCORES} more" if len(shown) > MAX_SCORES else ""
        self._display.note(f"Scores at {progress.images:,} images: {text or 'none'}{more}")

    @hookimpl
    def freeflow_checkpoint_saved(self, run: RunInfo, progress: Progress, path: Path) -> None:
        """Where the checkpoint is."""
        self._display.note(f"Checkpoint at {progress.images:,} images: {formats.path(path)}")

    @hookimpl
    def freeflow_run_finished(self, run: RunInfo, status: str) -> None:
        """Put the terminal back in order."""
        self.close()

    def close(self) -> None:
        """Stop the display. May be called twice."""
        self._display.close()
