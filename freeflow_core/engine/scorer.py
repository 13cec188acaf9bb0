"""What a run asks of the evaluation, which the engine itself does not know."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from freeflow_core.config import RunConfig
from freeflow_core.engine.build import Builder, Components
from freeflow_core.engine.events import Events
from freeflow_core.engine.run_folder import RunFolder
from freeflow_core.interfaces import Student
from freeflow_core.types import Progress, Scores


class Scorer(Protocol):
    """Looks at the (averaged) student of a run; :class:`freeflow_core.evaluation.scoring.Scoring`.

    All processes of the run call it alike, and sample together; the main one writes. ``no_images`` says why there are
    neither pictures nor scores, or is None.
    """

    @property
    def no_images(self) -> str | None: ...

    def prepare(self) -> None:
        """Before training: a missing file shows now, and not after hours."""

    def can_show(self) -> bool:
        """Whether there is a codec to make images with."""

    def picture(self, images_seen: int) -> None:
        """A grid of samples."""

    def score(self, progress: Progress, *, everything: bool) -> Scores:
        """All rows of the table, or the student's one step alone."""

    @property
    def first_look(self) -> int | None:
        """Images after which to :meth:`look`; None: never."""

    def look(self, progress: Progress) -> None:
        """The student's single step beside the teacher's own, cheaply; a student that is worse is told."""

    def compare(self, images_seen: int) -> bool:
        """Teacher and student from the same noise; False when there is nothing to show."""

    def save_student(self, images_seen: int) -> None:
        """The final network in one file."""

    def report(self, command: str, scores: Scores, facts: Mapping[str, str], load_report: str | None) -> None:
        """``report.md``."""

    def files(self) -> dict[str, Path]:
        """What was written, by name; tells the trackers to keep it."""


class MakeScorer(Protocol):
    """Makes the :class:`Scorer` of a run; the engine itself knows none."""

    def __call__(
        self,
        config: RunConfig,
        builder: Builder,
        components: Components,
        student: Student,
        folder: RunFolder,
        events: Events,
    ) -> Scorer: ...
