"""Where metrics, images and files go."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from freeflow_core.interfaces.build import Buildable
from freeflow_core.types import RunInfo


class Tracker(Buildable):
    """Called on the main process only. A tracker that fails must warn once and never stop a run."""

    @abstractmethod
    def start(self, run: RunInfo, state: Mapping[str, Any]) -> None:
        """Begin, or go on with what ``state`` (from a checkpoint, else empty) names.

        A run with ``run.parent`` belongs to the run of that key, which need not have been seen by the tracker's server.
        """

    @abstractmethod
    def log_metrics(self, metrics: Mapping[str, float], images: int) -> None:
        """Scalars at ``images`` images seen."""

    @abstractmethod
    def log_images(self, name: str, images: Tensor, images_seen: int) -> None:
        """One picture, uint8 (C, H, W)."""

    @abstractmethod
    def log_file(self, path: Path, folder: str = "") -> None:
        """Keep a file or folder as an artifact."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """JSON values that let a resumed run go on in the same place."""

    @abstractmethod
    def finish(self, status: str) -> None:
        """``finished``, ``stopped``, ``interrupted`` or ``failed``. Flush; always called."""
