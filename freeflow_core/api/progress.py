"""A bar for runs that are started from Python. The command line has its own."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

from tqdm.auto import tqdm

from freeflow_core.plugin import Manager, hookimpl
from freeflow_core.types import Progress, RunInfo


@contextmanager
def shown(manager: Manager, wanted: bool | None) -> Iterator[None]:
    """Show the progress of the runs made inside; None: in a notebook and on a terminal."""
    if wanted is None:
        wanted = "ipykernel" in sys.modules or sys.stderr.isatty()
    if not wanted:
        yield
        return
    bar = _Bar()
    with manager.beside(bar, "progress-bar"):
        try:
            yield
        finally:
            bar.close()


@final
class _Bar:
    """One bar for a run's training, one for each row of its scores, which does not stay."""

    def __init__(self) -> None:
        self._title = ""
        self._bar: Any = None

    @hookimpl
    def freeflow_step_finished(self, run: RunInfo, progress: Progress, metrics: Mapping[str, float]) -> None:
        self._advance(run.name, progress.images, progress.total_images, "images", keep=True)
        if (loss := metrics.get("student/loss")) is not None and self._bar is not None:
            self._bar.set_postfix(loss=f"{loss:.4g}", refresh=False)

    @hookimpl
    def freeflow_evaluation_advanced(self, run: RunInfo, row: str, done: int, total: int) -> None:
        self._advance(f"scores of {row.replace('_', ' ')}", done, total, "samples", keep=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._title, self._bar = "", None

    def _advance(self, title: str, done: int, total: int, unit: str, *, keep: bool) -> None:
        if self._bar is None or title != self._title:
            self.close()
            self._title = title
            self._bar = tqdm(total=total, desc=title, unit=f" {unit}", leave=keep)
        self._bar.update(done - self._bar.n)
