"""One run from configuration to report: what happens between training steps."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import final

import torch

from freeflow_core.config import RunConfig, to_yaml
from freeflow_core.engine.blocks import compiling, told_first_step, uncompiled
from freeflow_core.engine.build import Builder, build_components
from freeflow_core.engine.checks import PATIENCE, check_first_step, warn_of_idle_roles
from freeflow_core.engine.events import Events
from freeflow_core.engine.interruption import Agreement, StopRequest
from freeflow_core.engine.peers import Peers
from freeflow_core.engine.process import Crew, from_each, from_main, gloo_group, on_each, peak_memory, start_accelerator
from freeflow_core.engine.run_folder import Membership, RunFolder
from freeflow_core.engine.scorer import MakeScorer
from freeflow_core.engine.state import STUDENT, build_state
from freeflow_core.engine.trainer import Trainer
from freeflow_core.errors import FreeflowError, Interrupted
from freeflow_core.interfaces.journal import now, run_tags
from freeflow_core.math.derivative import float32_products
from freeflow_core.plugin import Manager, Registry
from freeflow_core.types import RunInfo, Scores

_log = logging.getLogger("freeflow")
_LOOKED = "looked_at"
"""In ``run.json``: the images after which all looks that were due have come to their end."""


@dataclass(frozen=True)
class RunOutcome:
    """What a run left behind.

    ``scores`` maps rows of the table to scores by name; ``files`` maps what was written to its path.
    """

    folder: Path
    status: str
    scores: Scores = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    load_report: str | None = None
    duration_seconds: float = 0.0
    peak_memory_bytes: int = 0


@final
class Run:
    """Builds everything, trains, evaluates, reports. Use once.

    Args:
        output: run folder; None for ``runs/<name>``.
        resume: go on from the newest checkpoint there.
        membership: the comparison that the run is one of; a resumed run remembers it.
        scorer: what looks at the student between steps and at the end.
    """

    def __init__(
        self,
        config: RunConfig,
        command: str,
        manager: Manager,
        *,
        output: Path | None,
        resume: bool,
        scorer: MakeScorer,
        membership: Membership | None = None,
    ) -> None:
        self._began = time.perf_counter()
        self.config = config
        self.command = command
        self.accelerator = start_accelerator(config.runtime)
        self._is_alone = self.accelerator.num_processes == 1
        if self._is_alone and config.runtime.sharding != "none":
            _log.warning(
                f"runtime.sharding={config.runtime.sharding} divides nothing here: the run is one process, which holds "
                "all weights. Start several with torchrun to divide them."
            )
        self._stop = StopRequest(patient=not self._is_alone)
        registry, crew = Registry(manager), Crew(self.accelerator, self._stop)
        builder = Builder(registry, self.accelerator.device, config.seed, config.runtime.precision, crew=crew)
        self._main = self.accelerator.is_main_process
        self._told_of_idle_roles = False
        self._resumed, self._has_looked = resume, False
        self._status, self._has_begun = "failed", False
        self._once: dict[str, float] = {}
        peers = Peers(self.accelerator)
        with contextlib.ExitStack() as ending:
            ending.enter_context(
                peers.watched(lambda: "Give the same command again, with --resume if the run has a folder.")
            )
            self.components = build_components(builder, config)
            self.state = build_state(config, self.components, self.accelerator)
            trackers = [builder.build("tracker", choice) for choice in config.trackers] if self._main else []
            ending.enter_context(self._stop)
            self.folder = self._open_folder(output, resume)
            ending.callback(self.folder.release)
            ending.push(self._note_end)
            ending.enter_context(peers.watched(self._onward))
            self._agreement = Agreement(None if self._is_alone else gloo_group(config.runtime))
            ending.callback(self._agreement.close)
            if self.state.sharding is not None:
                ending.callback(self.state.sharding.close)
            self._checkpoints = self.folder.checkpoints
            ending.callback(self._checkpoints.close)
            with self._stop.at_once():
                if resume:
                    self._load_newest()
                self.trainer = Trainer(config, self.components, self.state, self.accelerator)
                self.events = Events(manager, trackers, self._info(membership), self._main)
                components, student = self.state.outside(self.components, use_ema=config.evaluation.use_ema)
                self.scoring = scorer(config, builder, components, student, self.folder, self.events)
                with self._shown():
                    on_each(self.accelerator, self.scoring.prepare)
            self._ending = ending.pop_all()

    def execute(self) -> RunOutcome:
        """Train to the end (or to ``stop_at_images``), then evaluate. Observers always hear how it ended.

        Raises:
            Interrupted: Ctrl-C, SIGTERM, SIGUSR1 or SIGHUP, after a checkpoint.
            NonFiniteError: see :class:`Trainer`.
            FreeflowError: the run folder cannot be written, or another process of the run is gone.
        """
        runtime = self.config.runtime
        with compiling(runtime), float32_products(runtime.matmul_precision), self._ending:
            try:
                self._has_begun = True
                self.events.started(self.state.images)
                if self.state.images == 0:
                    self.events.filed(self.folder.config_file)
                self._train()
                outcome = "finished" if self.state.images >= self.config.training.images else "stopped"
                result = self._conclude(outcome)
                self._status = outcome
                return result
            except OSError as error:
                raise FreeflowError(
                    f"Writing to {self.folder.path} failed: {error}. The last good checkpoint is "
                    f"{self.folder.checkpoints.latest() or 'none'}; free some space, then go on with --resume."
                ) from error

    def _onward(self) -> str:
        """What to do when a process is gone."""
        last = self.folder.checkpoints.latest()
        return (
            f"The last good checkpoint is {last}; go on with --resume."
            if last
            else f"There is no checkpoint yet: the same command with --resume --output {self.folder.path} begins again."
        )

    def _note_end(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """How the run ended: in its folder first, then to observers and trackers, who may be slow.

        Raises:
            FreeflowError: a run that came to its end cannot note that it did.
        """
        unwritten: OSError | None = None
        if isinstance(error, (KeyboardInterrupt, Interrupted)):
            self._status = "interrupted"
        if self._main:
            try:
                self.folder.journal.write_status(status=self._status, images=self.state.images, ended=now())
            except OSError as problem:
                unwritten = problem
        if self._has_begun:
            self.events.finished(self._status)
        if unwritten is not None and error is None:  # else what ended the run is to be told, a full disk perhaps
            raise FreeflowError(
                f"{self.folder.journal.status_file} cannot be written: {unwritten}. All else of the run is there; free "
                "some space, then go on with --resume."
            ) from unwritten

    def _info(self, membership: Membership | None) -> RunInfo:
        config, member, status = self.config, self._membership(membership), self.folder.journal.status()
        return RunInfo(
            config.name,
            self.command,
            self.folder.path,
            config.model_dump(mode="json"),
            to_yaml(config),
            self._resumed,
            key=f"{member.parent.key}-{config.name}" if member else status.get("key"),
            parent=member.parent if member else None,
            tags=run_tags(status, member.tags if member else {}),
        )

    def _open_folder(self, output: Path | None, resume: bool) -> RunFolder:
        """The main process makes or checks the folder, and owns it; the others learn its path, or its error."""
        owned: list[RunFolder] = []

        def opened() -> Path:
            folder = (
                RunFolder.resume(self.config, output) if resume else RunFolder.start(self.config, self.command, output)
            )
            owned.append(folder)
            return folder.path

        path = from_main(self.accelerator, opened)
        return owned[0] if owned else RunFolder(path, self.config.checkpointing.keep)

    def _membership(self, given: Membership | None) -> Membership | None:
        """What the run belongs to: kept in its folder, so that a member resumed by itself stays one."""
        if given is None:
            kept = self.folder.journal.status().get("membership")
            return None if kept is None else Membership.from_json(kept, self.folder.path.parent)
        if self._main:
            self.folder.journal.write_status(membership=given.to_json())
        return given

    def _load_newest(self) -> None:
        """The main process verifies and chooses; all load what it chose, or none does."""
        checkpoints, fall_back = self.folder.checkpoints, self.config.checkpointing.fall_back
        path = from_main(self.accelerator, lambda: checkpoints.newest_whole(fall_back=fall_back))
        if path is not None:
            on_each(self.accelerator, lambda: checkpoints.load(path, self.state))
        self._has_looked = from_main(self.accelerator, self._cut_journal)

    def _cut_journal(self) -> bool:
        """Back to the checkpoint; whether it was seen whole then. If not, what was seen of it is seen again."""
        images, journal = self.state.images, self.folder.journal
        has_looked = bool(0 < images <= journal.status().get(_LOOKED, -1))  # from 0 on all is told anew
        journal.write_status(**{_LOOKED: images if has_looked else -1})
        journal.cut(images, looks=has_looked)
        return has_looked

    def _train(self) -> None:
        config = self.config
        end = min(config.training.images, config.training.stop_at_images or config.training.images)
        if self.state.images == 0:
            ahead = self.trainer.peek()
            with self._shown(use_ema=False), uncompiled(config.runtime):
                components, _ = self.state.outside(self.components, use_ema=False)
                check_first_step(config, components, ahead.batch, ahead.draws)
        elif not self._has_looked and self.state.images < end:
            self._look_around(self.state.images - config.training.batch_size)
        self._restart_clock()
        first = self.state.images
        while self.state.images < end:
            before, began = self.state.images, time.perf_counter()
            self.trainer.step()
            if config.runtime.compile and before == first:
                self._once["first_step_seconds"] = told_first_step(began, self.accelerator.device)
                self._restart_clock()
            last = self.state.images >= end
            if last or self._passed(before, config.logging.every_images):
                self._log()
                self._look_for_idle_roles(last)
            if self._agreement.reached(self._stop.requested):
                self._interrupt()
            if last or self._passed(before, config.checkpointing.every_images):
                self._checkpoint(wait=last or not config.checkpointing.asynchronous)
            if not last:
                self._look_around(before)

    def _look_around(self, before: int) -> None:
        """All looks that the last step made due. That none is missing is noted, for a run that goes on from here."""
        config, scoring = self.config, self.scoring
        looks: list[tuple[Callable[[], object], bool]] = []
        if before < (scoring.first_look or 0) <= self.state.images:
            looks.append((lambda: scoring.look(self.trainer.progress), False))
        if self._passed(before, config.samples.every_images):
            looks.append((lambda: scoring.picture(self.state.images), True))
        if self._passed(before, config.evaluation.every_images):
            looks.append((lambda: scoring.score(self.trainer.progress, everything=False), True))
        for look, shows in looks:
            if not self._look(look, shows=shows):
                self._interrupt()
        if looks and self._main:
            self.folder.journal.write_status(**{_LOOKED: self.state.images})

    def _passed(self, before: int, interval: int | None) -> bool:
        return interval is not None and before // interval < self.state.images // interval

    def _interrupt(self) -> None:
        path = self._checkpoint()
        raise Interrupted(
            f"The run was stopped at image {self.state.images:,} of {self.config.training.images:,}. "
            f"The state is in {path}. Go on with the same command plus: --resume --output {self.folder.path}"
        )

    def _log(self) -> None:
        metrics, self._once = self.trainer.read_metrics() | self._once, {}
        self.events.stepped(self.trainer.progress, metrics)
        if self.config.checkpointing.asynchronous:
            self._tell_saved(self._checkpoints.saved(self.accelerator, wait=False))

    def _look_for_idle_roles(self, last: bool) -> None:
        """Once, after a while or at the end: trainable roles that no loss has come for."""
        if self._main and not self._told_of_idle_roles and (last or self.state.step >= PATIENCE):
            self._told_of_idle_roles = True
            warn_of_idle_roles(self.config.objective.name, self.state)

    def _checkpoint(self, *, wait: bool = True) -> Path:
        with self._stop.shielded():
            if self.trainer.meter.pending:
                self._log()  # raises when a step was not finite: no checkpoint is written after one
            self._tell_saved(self._checkpoints.saved(self.accelerator))
            self._saved_at = self.trainer.progress
            path = self._checkpoints.save(self.state, {"command": self.command}, self.accelerator, wait=wait)
            if wait:
                self._tell_saved(path)
        self._restart_clock()
        return path

    def _tell_saved(self, path: Path | None) -> None:
        if path is not None:
            from_main(self.accelerator, lambda: self.events.saved(self._saved_at, path))

    def _look(self, look: Callable[[], object], *, shows: bool) -> bool:
        """While training's clock stands still; ``shows`` needs a codec.

        Whether it came to its end: a signal ends it, and then the run.
        """
        try:
            with self._answering(), self._shown():
                if not shows or self._can_show():
                    look()
        except KeyboardInterrupt:
            return False
        finally:
            self._restart_clock()
        return True

    def _shown(self, *, use_ema: bool | None = None) -> AbstractContextManager[None]:
        """Around what asks networks outside of training steps; by default of the student that is scored."""
        average = self.config.evaluation.use_ema if use_ema is None else use_ema
        return self.state.shown(self.components, use_ema=average)

    def _answering(self) -> AbstractContextManager[None]:
        """A process alone answers signals at once, several where their crew agrees on it."""
        return self._stop.at_once() if self._is_alone else contextlib.nullcontext()

    def _can_show(self) -> bool:
        return all(from_each(self.accelerator, [self.scoring.can_show()]))

    def _restart_clock(self) -> None:
        self.trainer.restart_clock()
        self._agreement.restart_clock()

    def _conclude(self, status: str) -> RunOutcome:
        """What a signal ends here, --resume does again."""
        try:
            with self._answering(), self._shown():
                result = self._report(status)
                return from_main(self.accelerator, lambda: result)
        except KeyboardInterrupt:
            raise Interrupted(
                "The run was stopped after training, before its scores and report were complete. "
                f"Go on with the same command plus: --resume --output {self.folder.path}"
            ) from None

    def _report(self, status: str) -> RunOutcome:
        scores: Scores = {}
        self.scoring.save_student(self.state.images)
        if status == "finished":
            self.scoring.look(self.trainer.progress)
        if self._can_show():
            if self.config.evaluation.enabled and status == "finished":
                scores = self.scoring.score(self.trainer.progress, everything=True)
                self.scoring.compare(self.state.images)
            self.scoring.picture(self.state.images)
        duration, memory = time.perf_counter() - self._began, peak_memory(self.accelerator.device)
        load_report = str(self.components.load_report) if self.components.teacher is not None else None
        self.scoring.report(self.command, scores, self._facts(duration, memory), load_report)
        files = self.scoring.files()
        return RunOutcome(self.folder.path, status, scores, files, load_report, duration, memory)

    def _facts(self, duration: float, memory: int) -> dict[str, str]:
        network = self.state.roles[STUDENT].network
        runtime = self.config.runtime
        return {
            "images seen": f"{self.state.images:,} of {self.config.training.images:,}",
            "steps": f"{self.state.step:,} of {self.config.training.batch_size} images",
            "student weights": f"{sum(p.numel() for p in network.parameters()):,}",
            "device": f"{self.accelerator.device}, {runtime.precision}, {torch.get_num_threads()} threads, "
            f"{self.accelerator.num_processes} process(es)",
            "time so far": f"{duration:.0f} s",
            "peak memory": f"{memory / 2**30:.2f} GiB",
        } | ({"no pictures or scores": self.scoring.no_images} if self.scoring.no_images else {})
