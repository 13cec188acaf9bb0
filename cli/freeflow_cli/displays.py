"""Two ways to show progress: a live bar on a terminal, plain lines everywhere else."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from freeflow_cli import formats

LINE_INTERVAL = 10.0
"""Seconds between two plain lines."""


class Display(ABC):
    """Shows how far a piece of work is: training, or one row of the evaluation."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @abstractmethod
    def advance(self, title: str, done: int, total: int, *, unit: str, rate: float | None, details: str) -> None:
        """``done`` of ``total``; ``rate`` in units per second; work with a new title replaces the work before it."""

    @abstractmethod
    def close(self) -> None:
        """Leave the terminal clean. May be called twice."""

    def note(self, text: str) -> None:
        """One line that stays."""
        self._console.print(Text(text), soft_wrap=True, highlight=False)


@final
class LiveDisplay(Display):
    """A Rich bar that is redrawn in place; finished work stays on the screen as one line."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._progress: Progress | None = None
        self._task: tuple[str, TaskID] | None = None

    def advance(self, title: str, done: int, total: int, *, unit: str, rate: float | None, details: str) -> None:
        if self._progress is None:
            self._progress = self._start()
        if self._task is None or self._task[0] != title:
            self._task = (title, self._progress.add_task(title, total=total, count="", speed="", left="", details=""))
        self._progress.update(
            self._task[1],
            completed=done,
            count=f"{done:,}/{total:,} {unit}",
            speed=f"{formats.number(rate)}/s" if rate else "",
            left=f"{formats.clock(remaining(done, total, rate))} left" if rate and done < total else "",
            details=details,
        )

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._task = None

    def _start(self) -> Progress:
        def column(field: str, style: str = "none", ratio: int | None = None) -> TextColumn:
            # No markup: the values hold metric names, which plugins choose.
            place = Column(no_wrap=True, overflow="ellipsis", ratio=ratio)
            return TextColumn(f"{{task.{field}}}", style=style, markup=False, table_column=place)

        progress = Progress(
            column("description"),
            BarColumn(bar_width=12),
            column("fields[count]"),
            column("fields[speed]"),
            column("fields[left]", style="cyan"),
            column("fields[details]", style="dim", ratio=1),  # the one that is cut when the terminal is narrow
            console=self._console,
            expand=True,
            refresh_per_second=4,
        )
        progress.start()
        return progress


@final
class LineDisplay(Display):
    """A line at the end of a piece of work, and at most one every ``interval`` seconds before."""

    def __init__(
        self, console: Console, interval: float = LINE_INTERVAL, now: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(console)
        self._interval = interval
        self._now = now
        self._title: str | None = None
        self._last = 0.0

    def advance(self, title: str, done: int, total: int, *, unit: str, rate: float | None, details: str) -> None:
        now = self._now()
        if title != self._title:
            self._title, self._last = title, now
        if done < total and now - self._last < self._interval:
            return
        self._last = now
        parts = [f"{title}: {done:,}/{total:,} {unit} ({done / max(total, 1):.0%})"]
        if rate:
            parts.append(f"{formats.number(rate)} {unit}/s")
            if done < total:
                parts.append(f"{formats.clock(remaining(done, total, rate))} left")
        if details:
            parts.append(details)
        self.note(", ".join(parts))

    def close(self) -> None:
        self._title = None


def remaining(done: int, total: int, rate: float) -> float:
    """Seconds left at this rate."""
    return max(0, total - done) / rate


def main_losses(metrics: Mapping[str, float], limit: int = 3) -> str:
    """The losses and residuals among ``metrics``, the student's first and without its prefix."""
    chosen = [name for name in metrics if name.rsplit("/", 1)[-1].endswith(("loss", "residual"))]
    chosen.sort(key=lambda name: (not name.startswith("student/"), not name.endswith("/loss")))
    return ", ".join(
        f"{name.removeprefix('student/').replace('_', ' ')} {formats.number(metrics[name])}" for name in chosen[:limit]
    )
