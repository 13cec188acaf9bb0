"""Progress on the console: a live bar on a terminal, plain lines everywhere else."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, final

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from freeflow_cli.console import clock, is_main_process, messages, print_paragraph, shown_path
from freeflow_cli.tables import number
from freeflow_core.plugin import hookimpl

if TYPE_CHECKING:
    from freeflow_core.types import Progress as TrainingProgress
    from freeflow_core.types import RunInfo


LINE_INTERVAL = 10.0
"""Seconds between two plain lines."""
_COSTS = "/evaluations", "/ms_per_image"
MAX_SCORES = 4
"""Scores shown after an evaluation during training."""


class Display(ABC):
    """Shows how far a piece of work is: training, or one row of the evaluation."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @abstractmethod
    def advance(
        self, title: str, done: int, total: int, *, unit: str = "images", rate: float | None = None, details: str = ""
    ) -> None:
        """``done`` of ``total``; ``rate`` in units per second; work with a new title replaces the work before it."""

    @abstractmethod
    def close(self) -> None:
        """Leave the terminal clean. May be called twice."""

    def note(self, text: str) -> None:
        print_paragraph(self._console, text)


@final
class _TwoLines(Progress):
    """The bars, and below them the details of the work that goes on, which no bar leaves room for."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.tasks and (details := self.tasks[-1].fields["details"]):
            yield Text(f"  {details}", style="dim")


@final
class LiveDisplay(Display):
    """A Rich bar that is redrawn in place; finished work stays on the screen as one line."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._progress: Progress | None = None
        self._task: tuple[str, TaskID] | None = None

    def advance(
        self, title: str, done: int, total: int, *, unit: str = "images", rate: float | None = None, details: str = ""
    ) -> None:
        if self._progress is None:
            self._progress = self._start()
        if self._task is None or self._task[0] != title:
            self._task = (title, self._progress.add_task(title, total=total, count="", speed="", left="", details=""))
        self._progress.update(
            self._task[1],
            completed=done,
            count=f"{done:,}/{total:,} {unit}",
            speed=f"{number(rate)}/s" if rate else "",
            left=_left(done, total, rate),
            details=details,
        )

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._task = None

    def _start(self) -> Progress:
        def column(field: str, style: str = "none") -> TextColumn:
            # No markup: the values hold metric names, which plugins choose.
            place = Column(no_wrap=True, overflow="ellipsis")
            return TextColumn(f"{{task.{field}}}", style=style, markup=False, table_column=place)

        progress = _TwoLines(
            column("description"),
            BarColumn(bar_width=12),
            column("fields[count]"),
            column("fields[speed]"),
            column("fields[left]", style="cyan"),
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
        self._interval, self._now = interval, now
        self._title: str | None = None
        self._last = 0.0

    def advance(
        self, title: str, done: int, total: int, *, unit: str = "images", rate: float | None = None, details: str = ""
    ) -> None:
        now = self._now()
        if title != self._title:
            self._title, self._last = title, now
        if done < total and now - self._last < self._interval:
            return
        self._last = now
        count = f"{title}: {done:,}/{total:,} {unit} ({done / max(total, 1):.0%})"
        speed = f"{number(rate)} {unit}/s" if rate else ""
        self.note(", ".join(filter(None, (count, speed, _left(done, total, rate), details))))

    def close(self) -> None:
        self._title = None


def _left(done: int, total: int, rate: float | None) -> str:
    return f"{clock((total - done) / rate)} left" if rate and done < total else ""


def choose_display(console: Console) -> Display:
    """A live bar for a terminal, lines for a pipe, a log file or a dumb terminal."""
    return LiveDisplay(console) if console.is_interactive else LineDisplay(console)


@final
class CountProgress:
    """Images done, images a second, and the time that is left.

    The first report is where the clock starts, so that loading and compiling do not count, nor what was there
    already.
    """

    def __init__(self, title: str, display: Display | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self._title, self._now = title, now
        self._display = display or choose_display(messages())
        self._start: tuple[float, int] | None = None
        self._last = -1

    def advance(self, done: int, total: int) -> None:
        """``done`` of ``total``; a number that was told before is not told again."""
        if done == self._last or not is_main_process():
            return
        self._last, now = done, self._now()
        self._start = self._start or (now, done)
        elapsed = now - self._start[0]
        rate = (done - self._start[1]) / elapsed if elapsed > 0 else None
        self._display.advance(self._title, done, total, rate=rate)

    def close(self) -> None:
        self._display.close()


@final
class ProgressObserver:
    """Implements the observer hooks; shows nothing before the first event. ``origin``: where the settings are from."""

    def __init__(self, console: Console, display: Callable[[Console], Display] = choose_display) -> None:
        self._display = display(console)
        self._shown_pictures = 0
        self.origin = ""

    @hookimpl
    def freeflow_run_started(self, run: RunInfo) -> None:
        verb = "Resuming" if run.resumed else "Starting"
        settings = f", settings of the {self.origin}" if self.origin else ""
        self._display.note(f"{verb} {run.command} run {run.name!r} in {shown_path(run.folder)}{settings}")
        self._shown_pictures = len(_pictures(run))

    @hookimpl
    def freeflow_step_finished(self, run: RunInfo, progress: TrainingProgress, metrics: Mapping[str, float]) -> None:
        done, rate = min(progress.images, progress.total_images), metrics.get("images_per_second")
        self._display.advance(run.command, done, progress.total_images, rate=rate, details=main_losses(metrics))
        pictures = _pictures(run)
        if len(pictures) > self._shown_pictures:
            self._shown_pictures = len(pictures)
            self._display.note(f"Samples: {shown_path(pictures[-1])}")

    @hookimpl
    def freeflow_evaluation_advanced(self, run: RunInfo, row: str, done: int, total: int) -> None:
        self._display.advance(f"evaluate {row.replace('_', ' ')}", done, total, unit="samples")

    @hookimpl
    def freeflow_evaluation_finished(
        self, run: RunInfo, progress: TrainingProgress, scores: Mapping[str, float]
    ) -> None:
        """A few scores of an evaluation during training; the one at the end is printed as a table."""
        if progress.images >= progress.total_images:
            return
        from freeflow_core.interfaces.evaluator import score_texts  # with torch behind it

        named = {name: text for name, text in score_texts(scores, number).items() if not name.endswith(_COSTS)}
        shown = [f"{name.removeprefix('evaluation/')} {text}" for name, text in named.items()]
        more = f", and {len(shown) - MAX_SCORES} more" if len(shown) > MAX_SCORES else ""
        self._display.note(f"Scores at {progress.images:,} images: {', '.join(shown[:MAX_SCORES]) or 'none'}{more}")

    @hookimpl
    def freeflow_checkpoint_saved(self, run: RunInfo, progress: TrainingProgress, path: Path) -> None:
        self._display.note(f"Checkpoint at {progress.images:,} images: {shown_path(path)}")

    @hookimpl
    def freeflow_run_finished(self, run: RunInfo, status: str) -> None:
        self.close()

    def close(self) -> None:
        self._display.close()


def _pictures(run: RunInfo) -> list[Path]:
    return sorted((run.folder / "samples").glob("*.png"))


def main_losses(metrics: Mapping[str, float], limit: int = 5) -> str:
    """The losses and residuals among ``metrics``, the student's first and without its prefix."""
    chosen = [name for name in metrics if name.rsplit("/", 1)[-1].endswith(("loss", "residual"))]
    chosen.sort(key=lambda name: (not name.startswith("student/"), not name.endswith("/loss")))
    return ", ".join(f"{n.removeprefix('student/').replace('_', ' ')} {number(metrics[n])}" for n in chosen[:limit])
