"""The run above all runs of a comparison, as trackers see it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import final

import yaml

from freeflow_core.config.compare import CompareConfig
from freeflow_core.engine.build import Builder
from freeflow_core.engine.events import Events
from freeflow_core.engine.run import Membership
from freeflow_core.files import write_text
from freeflow_core.interfaces import Tracker
from freeflow_core.interfaces.journal import now
from freeflow_core.plugin import Manager
from freeflow_core.tools.compare.plan import PlannedRun
from freeflow_core.tools.compare.table import Table
from freeflow_core.types import Progress, RunInfo, RunParent

COMMAND = "compare"


@final
class ParentRun:
    """Begins before the first run and ends after the last; the same key finds it again."""

    def __init__(
        self,
        config: CompareConfig,
        runs: Iterable[PlannedRun],
        manager: Manager,
        builder: Builder,
        *,
        key: str,
        folder: Path,
        resumed: bool,
    ) -> None:
        runs = tuple(runs)
        base = runs[0].variant.config
        self._parent = RunParent(key, folder)
        self._sweep = config.comparison.sweep.setting if config.comparison.sweep else None
        self._tags = {
            "teacher": base.teacher.name if base.teacher else "none",
            "budget": str(config.comparison.budget or f"images={base.training.images}"),
        }
        text = config.to_yaml()
        tags = {
            **self._tags,
            "objectives": ", ".join(config.comparison.objectives),
            "seeds": str(config.comparison.seeds),
        }
        info = RunInfo(config.name, COMMAND, folder, yaml.safe_load(text), text, resumed, key=key, tags=tags)
        trackers: list[Tracker] = [builder.build("tracker", choice) for choice in base.trackers]
        self._events = Events(manager, trackers, info, active=True)
        self._journal = self._events.journal
        self._journal.drop_after(-1)  # all is told anew at the end
        self._config_file = folder / "comparison.yaml"
        write_text(self._config_file, text)
        started = self._journal.status().get("started", now())
        self._journal.write_status(command=COMMAND, status="running", key=key, tags=tags, started=started)

    def started(self) -> None:
        """Tell everyone."""
        self._events.started()
        self._events.filed(self._config_file)

    def membership(self, run: PlannedRun) -> Membership:
        """What makes ``run`` one of this comparison's."""
        tags = {"objective": run.variant.objective, "seed": str(run.seed), **self._tags}
        if self._sweep is not None and run.variant.value is not None:
            tags[self._sweep] = json.dumps(run.variant.value)
        return Membership(self._parent, tags)

    def finished(self, status: str, table: Table | None, files: Iterable[Path]) -> None:
        """Hand over the table, as numbers (at a step that counts finished runs) and as files; always called."""
        with contextlib.suppress(OSError):  # a full disk has already been reported
            if table is not None and table.score is not None:
                scores = {
                    f"{row.name}/{table.score}_{steps}_step{'s' * (steps > 1)}": estimate.mean
                    for row in table.rows
                    for steps, estimate in row.scores.items()
                }
                done = sum(row.finished for row in table.rows)
                self._events.evaluated(Progress(done, done, max(1, done)), scores)
            for path in files:
                self._events.filed(path)
            self._journal.write_status(status=status, ended=now())
        self._events.finished(status)
