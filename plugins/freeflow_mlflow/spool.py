"""Records that wait on disk, in ``<run folder>/mlflow-unsent/<key>/``.

``run.json`` is the head of the run; ``metrics.jsonl`` and ``artifacts.jsonl`` hold a record a line; ``images/`` files.
Files are only listed (relative to the run folder where they lie in it), not copied: they may be large checkpoints.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

import numpy as np
from PIL import Image

from freeflow_mlflow.pending import Pending
from freeflow_mlflow.records import Artifact, FileRecord, ImageRecord, MetricRecord, RunHead

FOLDER = "mlflow-unsent"
_HEAD, _METRICS, _ARTIFACTS, _NONFINITE = "run.json", "metrics.jsonl", "artifacts.jsonl", "nonfinite.json"


@final
class Spool(Pending):
    """One MLflow run's records on disk; no folder is made before there is something to keep."""

    def __init__(self, run_folder: Path, key: str) -> None:
        self._run_folder = run_folder.absolute()
        self.folder = self._run_folder / FOLDER / key
        self._lock = threading.RLock()
        self._images = 0
        for name in (_METRICS, _ARTIFACTS):
            self._repair(self.folder / name)

    @classmethod
    def all_of(cls, run_folder: Path) -> list[Spool]:
        """Every MLflow run of which something is kept in a run folder."""
        return [cls(run_folder, head.parent.name) for head in sorted((run_folder / FOLDER).glob(f"*/{_HEAD}"))]

    @property
    def exists(self) -> bool:
        """True when something, at least the run's head, waits here."""
        return (self.folder / _HEAD).is_file()

    def head(self) -> RunHead:
        """The run's head. Raises ``FileNotFoundError`` when there is none."""
        return RunHead(**json.loads((self.folder / _HEAD).read_text("utf-8")))

    def write_head(self, head: RunHead) -> None:
        """Keep the run's head."""
        with self._lock:
            self._write(_HEAD, json.dumps(asdict(head), indent=1))

    def remove(self) -> None:
        """Delete the folder, and the one above it when no other run needs it."""
        with self._lock:
            shutil.rmtree(self.folder, ignore_errors=True)
            if self.folder.parent.is_dir() and not any(self.folder.parent.iterdir()):
                self.folder.parent.rmdir()

    def remove_if_empty(self) -> bool:
        """Delete the folder unless a record waits in it; whether it was deleted."""
        with self._lock:
            if empty := self.is_empty():
                self.remove()
            return empty

    def metrics(self) -> list[MetricRecord]:
        with self._lock:
            return [MetricRecord(**json.loads(line)) for line in self._lines(_METRICS)]

    def drop_metrics(self, count: int) -> None:
        with self._lock:
            self._drop(_METRICS, count)

    def artifacts(self) -> Iterator[Artifact]:
        with self._lock:
            lines = self._lines(_ARTIFACTS)
        return (self._load(json.loads(line)) for line in lines)

    def drop_artifact(self) -> None:
        with self._lock:
            if lines := self._lines(_ARTIFACTS):
                self._drop(_ARTIFACTS, 1)
                if picture := json.loads(lines[0]).get("image"):
                    (self.folder / picture).unlink(missing_ok=True)

    def nonfinite(self) -> Mapping[str, int]:
        with self._lock:
            path = self.folder / _NONFINITE
            return json.loads(path.read_text("utf-8")) if path.is_file() else {}

    def drop_nonfinite(self, counts: Mapping[str, int]) -> None:
        if counts:
            with self._lock:
                self._write(_NONFINITE, json.dumps(Counter(self.nonfinite()) - Counter(counts)))

    def add(
        self,
        metrics: Iterable[MetricRecord] = (),
        artifacts: Iterable[Artifact] = (),
        nonfinite: Mapping[str, int] | None = None,
    ) -> None:
        with self._lock:
            self._append(_METRICS, [json.dumps(asdict(record)) for record in metrics])
            self._append(_ARTIFACTS, [json.dumps(self._save(record)) for record in artifacts])
            if nonfinite:
                self._write(_NONFINITE, json.dumps(Counter(self.nonfinite()) + Counter(nonfinite)))

    def is_empty(self) -> bool:
        with self._lock:
            return not (self._lines(_METRICS) or self._lines(_ARTIFACTS) or any(self.nonfinite().values()))

    def count(self) -> tuple[int, int]:
        """Numbers of metrics and of artifacts that wait."""
        with self._lock:
            return len(self._lines(_METRICS)), len(self._lines(_ARTIFACTS))

    def _save(self, record: Artifact) -> dict[str, Any]:
        if isinstance(record, FileRecord):
            path = record.path.absolute()
            inside = path.is_relative_to(self._run_folder)
            return {
                "file": (path.relative_to(self._run_folder) if inside else path).as_posix(),
                "folder": record.folder,
            }
        self._images += 1
        picture = f"images/{record.time}-{os.getpid()}-{self._images}.png"
        (self.folder / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(record.pixels).save(self.folder / picture)
        return {"image": picture, "name": record.name, "time": record.time, "step": record.step}

    def _load(self, item: dict[str, Any]) -> Artifact:
        if "file" in item:
            return FileRecord(self._run_folder / item["file"], item["folder"])
        try:
            with Image.open(self.folder / item["image"]) as picture:
                pixels = np.asarray(picture)
        except OSError:  # an unreadable picture becomes a missing file, which is reported and skipped
            return FileRecord(self.folder / item["image"], "images")
        return ImageRecord(item["name"], pixels, item["time"], item["step"])

    def _lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text("utf-8").splitlines() if path.is_file() else []

    def _append(self, name: str, lines: list[str]) -> None:
        if lines:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / name).open("a", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n")

    def _drop(self, name: str, count: int) -> None:
        if count and (lines := self._lines(name)):
            self._write(name, "".join(f"{line}\n" for line in lines[count:]))

    def _write(self, name: str, text: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f"{name}.tmp"
        temporary.write_text(text, "utf-8")
        temporary.replace(self.folder / name)

    def _repair(self, path: Path) -> None:
        """A process that was killed while writing leaves half a last line; the records before it are whole."""
        if not path.is_file():
            return
        text = path.read_text("utf-8", errors="replace")
        if text and not text.endswith("\n"):
            whole = text[: text.rfind("\n") + 1]
            self._write(path.name, whole)
