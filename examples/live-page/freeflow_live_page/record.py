"""What is known of a run so far."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from freeflow_core.types import Progress, RunInfo

RUNNING = "running"
MOST_POINTS = 400


@final
@dataclass
class Record:
    """Filled by the observers, read by the page.

    ``curves`` holds (images, value) pairs by metric; ``scores`` rows of the last evaluation by name.
    """

    run: RunInfo
    status: str = RUNNING
    images: int = 0
    busy: str = ""
    checkpoint: str = ""
    scored_at: int = 0
    speed: float | None = None
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Length of the run in images."""
        return int(self.run.config["training"]["images"])

    def add_metrics(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        """One logging interval."""
        self.images, self.busy = progress.images, "training"
        self.speed = metrics.get("images_per_second")
        self._extend(progress.images, metrics)

    def set_scores(self, progress: Progress, scores: Mapping[str, float]) -> None:
        """Scores come as ``evaluation/<row>/<score>``."""
        self.scored_at, self.busy, self.scores = progress.images, "", {}
        for name, value in scores.items():
            _, row, score = name.split("/", 2)
            self.scores.setdefault(row, {})[score] = value

    def read_metrics(self, path: Path) -> None:
        """Curves of an earlier part of the run, from its ``metrics.jsonl``."""
        if not path.is_file():
            return
        for line in path.read_text("utf-8").splitlines():
            values = json.loads(line)
            self.images = int(values.pop("images"))
            del values["time"]
            self._extend(self.images, values)

    def newest_picture(self) -> Path | None:
        """The newest grid of samples in the run's folder; observers are not told of pictures, but can look."""
        grids = sorted((self.run.folder / "samples").glob("*.png"))
        return grids[-1] if grids else None

    def _extend(self, images: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            if name.startswith("evaluation/") or not math.isfinite(value):
                continue
            curve = self.curves.setdefault(name, [])
            curve.append((images, value))
            if len(curve) > MOST_POINTS:
                del curve[1:-1:2]  # half the points, both ends kept: a long run's page stays as small as a short one's
