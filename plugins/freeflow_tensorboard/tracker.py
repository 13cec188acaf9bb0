"""A run's journal as TensorBoard's event files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, final

import numpy as np
from PIL import Image

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces.journal import Artifact, Journal, Metrics, Picture
from freeflow_core.interfaces.tracker import Tracker
from freeflow_core.tracking import redact
from freeflow_core.types import RunInfo
from freeflow_tensorboard.config import TensorboardConfig

Row: TypeAlias = tuple[str, int, int]
"""What values and pictures are told apart by: name, images seen, milliseconds since 1970."""
_SUFFIX = ".freeflow"
"""Of the event files written here: no other is read or removed."""
_TEXTS = (".md", ".yaml")


@final
class TensorboardTracker(Tracker):
    """Event files in a folder of the run's own, at the step of images seen and with the records' real times.

    What a killed process had written is read back, and not written twice. Where a resumed run took records back, the
    files are written anew, so that they always say what the journal says.
    """

    def __init__(self, config: TensorboardConfig) -> None:
        self._config = config
        self.flush_seconds = config.flush_seconds
        self._writer: Any = None

    def store(self, run: RunInfo) -> str:
        return f"TensorBoard's files in {self._folder(run)}"

    def options(self, run: RunInfo) -> dict[str, Any]:
        return {"tensorboard": self._config.model_dump(mode="json")}

    def open(self, run: RunInfo, journal: Journal, notes: dict[str, Any], since: int | None) -> bool:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                f"The tracker tensorboard needs the package tensorboard ({error}). Install it with: pip install "
                "'freeflow-distill[tensorboard]'"
            ) from error
        self._close()
        folder = self._folder(run)
        files = sorted(folder.glob(f"*{_SUFFIX}"))
        rows = {row for record, _ in journal.metrics() for row in _rows(record, record.values)}
        rows |= {row for a, _ in journal.artifacts() if isinstance(a, Picture) for row in _rows(a, [a.name])}
        self._taken = _read_back(folder) if files else set()
        if stale := not self._taken <= rows:
            for file in files:
                file.unlink()
            self._taken = set()
        self._writer = SummaryWriter(str(folder), filename_suffix=_SUFFIX)
        if stale or not files:
            self._writer.add_text("config", _block(redact(run.config_yaml)), 0)
        return bool(files) and not stale

    def send_metrics(self, records: Sequence[Metrics], notes: dict[str, Any]) -> int:
        new = [
            (name, value, record)
            for record in records
            for (name, value), row in zip(record.values.items(), _rows(record, record.values), strict=True)
            if row not in self._taken
        ]
        for name, value, record in new:
            self._writer.add_scalar(name, value, record.images, record.time)
        self._writer.flush()
        return len(new)

    def send_artifact(self, artifact: Artifact) -> bool:
        path = artifact.path
        if isinstance(artifact, Picture):
            if self._taken.issuperset(_rows(artifact, [artifact.name])):
                return False
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
            self._writer.add_image(artifact.name, pixels, artifact.images, artifact.time, dataformats="HWC")
        elif path.suffix in _TEXTS and path.is_file():
            text = redact(path.read_text("utf-8"))
            self._writer.add_text(path.name, text if path.suffix == ".md" else _block(text), artifact.images)
        else:
            return False
        self._writer.flush()
        return True

    def finish(self, status: str, time: float) -> None:
        self._writer.add_text("status", status)
        self._close()

    def _folder(self, run: RunInfo) -> Path:
        if self._config.logdir is None:
            return run.folder / "tensorboard"
        return self._config.logdir / f"{run.folder.name}-{run.key}"  # names of folders are not unique

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None


def _rows(record: Metrics | Picture, names: Iterable[str]) -> list[Row]:
    return [(name, record.images, round(1000 * record.time)) for name in names]


def _read_back(folder: Path) -> set[Row]:
    """Every value and picture in the event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}, purge_orphaned_data=False)
    events.Reload()
    tags = events.Tags()
    found = [(tag, event) for tag in tags["scalars"] for event in events.Scalars(tag)]
    found += [(tag, event) for tag in tags["images"] for event in events.Images(tag)]
    return {(tag, event.step, round(1000 * event.wall_time)) for tag, event in found}


def _block(text: str) -> str:
    """As Markdown shows code."""
    return "".join(f"    {line}\n" for line in text.splitlines())
