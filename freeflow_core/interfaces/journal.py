"""What a run reports, kept in its folder. Every tracker sends a copy of it."""

import json
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar, final

import yaml

from freeflow_core.errors import ConfigError
from freeflow_core.files import write_text
from freeflow_core.types import RunInfo, RunParent


@dataclass(frozen=True)
class Metrics:
    """Numbers, perhaps not finite, at ``images`` images seen. ``time`` in seconds since 1970, to the millisecond."""

    images: int
    time: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class Picture:
    """A PNG file; a later one of the same ``name`` shows the same thing with more training."""

    images: int
    time: float
    path: Path
    name: str


@dataclass(frozen=True)
class File:
    """A file or folder worth keeping. It may be gone when it is read."""

    images: int
    time: float
    path: Path


Artifact: TypeAlias = Picture | File
ArtifactT = TypeVar("ArtifactT", Picture, File)
Record: TypeAlias = Metrics | Artifact


class Place(NamedTuple):
    """A reader's place in one of the two files: what lies before it, in bytes, and the checksum of these bytes."""

    bytes: int = 0
    checksum: int = 0


START = Place()
EVALUATION = "evaluation/"
"""How names of scores begin, which other metrics' do not."""


@final
class Journal:
    """``metrics.jsonl`` and ``artifacts.jsonl``, a record a line, oldest first; ``run.json``, what the run is.

    One process writes. Any number may read, during the run or long after; records come with the place behind them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics_file = folder / "metrics.jsonl"
        self.artifacts_file = folder / "artifacts.jsonl"
        self.status_file = folder / "run.json"

    def status(self) -> dict[str, Any]:
        """What ``run.json`` says; nothing where it is missing or damaged."""
        try:
            status = json.loads(self.status_file.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return status if isinstance(status, dict) else {}

    def write_status(self, **values: Any) -> None:
        """Update ``run.json``, in a folder that is there. Raises ``OSError``."""
        write_text(self.status_file, json.dumps({**self.status(), **values}, indent=1), make_folder=False)

    def run(self) -> RunInfo:
        """The run as its trackers know it. Raises :class:`ConfigError` when the folder holds none."""
        status, names = self.status(), ("config.yaml", "comparison.yaml")
        file = next((self.folder / name for name in names if (self.folder / name).is_file()), None)
        if file is None or not status:
            raise ConfigError(f"{self.folder} holds no run: expected config.yaml and run.json.")
        text = file.read_text("utf-8")
        config = yaml.safe_load(text)
        member = status.get("membership") or {}
        parent = RunParent(member["key"], self.folder.parent) if member else None
        name = config.get("name", self.folder.name)
        tags = run_tags(status, status.get("tags") or member.get("tags") or {})
        key = f"{parent.key}-{name}" if parent else status.get("key")
        return RunInfo(name, status.get("command", ""), self.folder, config, text, True, key, parent, tags)

    def add_metrics(self, images: int, values: Mapping[str, float]) -> Metrics:
        """Raises ``OSError``, as the other two do."""
        record = Metrics(images, now(), dict(values))
        _append(self.metrics_file, {"images": images, "time": record.time, **values})
        return record

    def add_picture(self, images: int, name: str, path: Path) -> Picture:
        """A PNG file that stays as it is."""
        return self._add_artifact(Picture(images, now(), path, name), picture=name)

    def add_file(self, images: int, path: Path) -> File:
        """Noted, not copied."""
        return self._add_artifact(File(images, now(), path))

    def _add_artifact(self, record: ArtifactT, **more: str) -> ArtifactT:
        path, folder = record.path.absolute(), self.folder.absolute()
        shown = (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()
        _append(self.artifacts_file, {"images": record.images, "time": record.time, "path": shown, **more})
        return record

    def cut(self, images: int, *, looks: bool = True) -> None:
        """Forget what came after a checkpoint that training goes on from, so that none appears twice.

        Args:
            images: records of more are forgotten.
            looks: keep the scores, pictures and files of ``images`` itself, which came after its training metrics.
        """
        for path in (self.metrics_file, self.artifacts_file):
            lines = [
                line
                for line, values, _ in _read(path, START)
                if values["images"] < images or (values["images"] == images and (looks or _is_of_training(values)))
            ]
            if path.is_file():
                write_text(path, b"".join(lines).decode())

    def metrics(self, place: Place = START) -> Iterator[tuple[Metrics, Place]]:
        """Everything behind ``place``, as far as it is written now."""
        for _, values, after in _read(self.metrics_file, place):
            yield Metrics(values.pop("images"), values.pop("time"), values), after

    def artifacts(self, place: Place = START) -> Iterator[tuple[Artifact, Place]]:
        """As :meth:`metrics`."""
        for _, values, after in _read(self.artifacts_file, place):
            images, time, path = values["images"], values["time"], self.folder / values["path"]
            name = values.get("picture")
            yield (File(images, time, path) if name is None else Picture(images, time, path, name)), after

    def stands(self, metrics: Place, artifacts: Place) -> bool:
        """Whether what was read up to these places is still there, and nothing else."""
        return _agrees(self.metrics_file, metrics) and _agrees(self.artifacts_file, artifacts)


def now() -> float:
    """Seconds since 1970, to the millisecond."""
    return round(time.time(), 3)


def run_tags(status: Mapping[str, Any], own: Mapping[str, str]) -> dict[str, str]:
    """A run's own tags, and the preset that ``run.json`` says it began with."""
    return ({"preset": status["preset"]} if status.get("preset") else {}) | dict(own)


def _is_of_training(values: Mapping[str, Any]) -> bool:
    return "path" not in values and not any(name.startswith(EVALUATION) for name in values)


def _append(path: Path, values: Mapping[str, Any]) -> None:
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # of a process that was killed while writing
                file.write(b"\n")
        file.write(json.dumps(values).encode() + b"\n")


def _read(path: Path, place: Place) -> Iterator[tuple[bytes, dict[str, Any], Place]]:
    """Whole lines with their values; what a killed process left of a line is passed over."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(place.bytes)
        for line in file:
            if not line.endswith(b"\n"):
                return
            place = Place(place.bytes + len(line), zlib.crc32(line, place.checksum))
            try:
                values = json.loads(line)
                yield line, {"time": 0.0, **values, "images": int(values["images"])}, place
            except (ValueError, KeyError, TypeError):
                continue


def _agrees(path: Path, place: Place) -> bool:
    if not place.bytes or not path.is_file():
        return not place.bytes
    with path.open("rb") as file:
        return zlib.crc32(file.read(place.bytes)) == place.checksum
