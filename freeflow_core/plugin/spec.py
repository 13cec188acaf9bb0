# mypy: disable-error-code="empty-body"
"""Hook specifications. A plugin implements any of them; all names begin with ``freeflow_``.

Order of a run: ``freeflow_run_started``, then per step ``freeflow_step_finished``, with
``freeflow_evaluation_finished`` and ``freeflow_checkpoint_saved`` at their intervals, and
``freeflow_run_finished`` last, always. Observers run on the main process only and cannot change training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from freeflow_core.plugin.component import Component, Preset, WeightFile

if TYPE_CHECKING:
    from freeflow_core.types import Progress, RunInfo

PROJECT = "freeflow"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Discovery:
    """What a plugin offers: components of one kind a hook, presets, published weights, commands."""

    @hookspec
    def freeflow_teachers(self) -> Iterable[Component]:
        """Frozen velocity oracles (:class:`freeflow_core.interfaces.Teacher`)."""

    @hookspec
    def freeflow_students(self) -> Iterable[Component]:
        """Trainable flow maps (:class:`freeflow_core.interfaces.Student`)."""

    @hookspec
    def freeflow_objectives(self) -> Iterable[Component]:
        """What is minimised (:class:`freeflow_core.interfaces.Objective`)."""

    @hookspec
    def freeflow_samplers(self) -> Iterable[Component]:
        """Noise to samples (:class:`freeflow_core.interfaces.Sampler`)."""

    @hookspec
    def freeflow_codecs(self) -> Iterable[Component]:
        """Images to latents and back (:class:`freeflow_core.interfaces.Codec`)."""

    @hookspec
    def freeflow_sources(self) -> Iterable[Component]:
        """Where batches come from (:class:`freeflow_core.interfaces.Source`)."""

    @hookspec
    def freeflow_evaluators(self) -> Iterable[Component]:
        """Scores of streamed samples (:class:`freeflow_core.interfaces.Evaluator`)."""

    @hookspec
    def freeflow_trackers(self) -> Iterable[Component]:
        """Where metrics, images and files go (:class:`freeflow_core.interfaces.Tracker`)."""

    @hookspec
    def freeflow_verifiers(self) -> Iterable[Component]:
        """Rank candidate samples for best-of-N search."""

    @hookspec
    def freeflow_distances(self) -> Iterable[Component]:
        """How far images look apart, for losses (:class:`freeflow_core.interfaces.Distance`)."""

    @hookspec
    def freeflow_presets(self) -> Iterable[Preset]:
        """Named, complete run configurations."""

    @hookspec
    def freeflow_weights(self) -> Iterable[WeightFile]:
        """Published weights that ``freeflow fetch`` and components find by name."""

    @hookspec
    def freeflow_commands(self, app: Any) -> None:
        """Add commands to the Typer application ``app``."""


class Observers:
    """Told what happens during a run; they cannot change it."""

    @hookspec
    def freeflow_run_started(self, run: RunInfo) -> None:
        """Everything is built and the first step is about to be taken."""

    @hookspec
    def freeflow_step_finished(self, run: RunInfo, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Called at every logging interval with the metrics read from the device."""

    @hookspec
    def freeflow_evaluation_advanced(self, run: RunInfo, row: str, done: int, total: int) -> None:
        """Called after each batch of an evaluation; ``row`` is the row of the table being scored."""

    @hookspec
    def freeflow_evaluation_finished(self, run: RunInfo, progress: Progress, scores: Mapping[str, float]) -> None:
        """Called after each evaluation."""

    @hookspec
    def freeflow_checkpoint_saved(self, run: RunInfo, progress: Progress, path: Path) -> None:
        """Called once the checkpoint folder is complete on disk."""

    @hookspec
    def freeflow_run_finished(self, run: RunInfo, status: str) -> None:
        """Always called last; ``status`` is ``finished``, ``stopped``, ``interrupted`` or ``failed``."""


SPECIFICATIONS: tuple[type[Any], ...] = (Discovery, Observers)
