"""One folder per run: configuration, checkpoints, pictures, metrics, report."""

from __future__ import annotations

import itertools
import logging
import os
import socket
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from filelock import FileLock, Timeout

from freeflow_core.config import RunConfig, to_yaml
from freeflow_core.config.load import changed_settings, read_config_file
from freeflow_core.engine.checkpoint import Checkpoints
from freeflow_core.errors import ConfigError, FreeflowError
from freeflow_core.files import remove_leftovers, write_text
from freeflow_core.interfaces.journal import Journal, now
from freeflow_core.types import RunParent

DEFAULT_PARENT = Path("runs")
FREE_TO_CHANGE = (
    "trackers", "logging", "checkpointing", "samples", "evaluation",
    "training.stop_at_images", "training.accumulation", "runtime.timeout_seconds", "runtime.sharding",
    "runtime.shard_size", "runtime.compile", "runtime.compile_backend", "runtime.activation_checkpointing",
    "runtime.offload_optimizer",
)  # fmt: skip
"""Settings that a resumed run may change, because they cannot change the weights but by rounding."""
_LOCK = ".lock"
_log = logging.getLogger("freeflow")


@dataclass(frozen=True)
class Membership:
    """The comparison that a run belongs to, and the tags by which it is told from the others in it."""

    parent: RunParent
    tags: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """As ``run.json`` keeps it."""
        return {"key": self.parent.key, "tags": dict(self.tags)}

    @classmethod
    def from_json(cls, kept: Mapping[str, Any], folder: Path) -> Membership:
        """What :meth:`to_json` gave; ``folder`` is the comparison's, which may have been moved."""
        return cls(RunParent(kept["key"], folder), dict(kept["tags"]))


class FolderBusy(ConfigError):
    """A run folder that another process writes to."""


@final
class RunFolder:
    """Paths of a run, and the rules for starting and resuming in one. One process at a time writes to it.

    Its lock is the system's: it goes with the process, however that ends.
    """

    def __init__(self, path: Path, keep: int = 2) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.journal = Journal(path)
        self.report_file = path / "report.md"
        self.scores_file = path / "scores.json"
        self.comparison_file = path / "comparison.png"
        self.student_file = path / "student.safetensors"
        self.samples = path / "samples"
        self.checkpoints = Checkpoints(path / "checkpoints", keep)
        self._lock = FileLock(path / _LOCK)

    @classmethod
    def start(cls, config: RunConfig, command: str, output: Path | None) -> RunFolder:
        """A new folder, owned by this process until :meth:`release`.

        Raises:
            ConfigError: ``output`` holds another run or other files, or another process is at work there.
            FreeflowError: it cannot be written.
        """
        for path in [output] if output is not None else _names(config.name):
            folder = cls(path, config.checkpointing.keep)
            if problem := folder._taken():
                if output is None:
                    continue
                raise ConfigError(problem)
            try:
                path.mkdir(parents=True, exist_ok=True)
                folder._own()
                if folder.config_file.exists():  # begun by another process in the meantime
                    raise FolderBusy(f"The output folder {path} has just been taken by another run.")
                kept = {"key": uuid.uuid4().hex, "preset": config.preset, "started": now(), **_this_process()}
                folder.journal.write_status(command=command, status="running", images=0, **kept)
                write_text(folder.config_file, to_yaml(config))  # last: with it the folder is a run
            except OSError as error:
                folder.release()
                raise FreeflowError(f"The output folder {path} cannot be written: {error}.") from error
            except FolderBusy:
                folder.release()
                if output is not None:
                    raise
                continue
            return folder
        raise AssertionError("names never end")

    @classmethod
    def resume(cls, config: RunConfig, output: Path | None) -> RunFolder:
        """The folder of an earlier run with the same configuration, owned by this process until :meth:`release`.

        Raises:
            ConfigError: no such run, settings that differ (they are listed), or another process is at work there.
            FreeflowError: it cannot be written.
        """
        path = output or _newest(config.name)
        folder = cls(path, config.checkpointing.keep)
        if not folder.config_file.is_file():
            raise ConfigError(f"--resume found no run in {path} (no config.yaml). Name its folder with --output.")
        if not (before := read_config_file(folder.config_file)):
            raise ConfigError(f"{folder.config_file} is empty: expected the run's settings. Put a good copy there.")
        if changed := changed_settings(before, config, free=FREE_TO_CHANGE):
            raise ConfigError(
                f"--resume with a changed configuration would not be the same run. Changed in {path}: "
                f"{'; '.join(changed)}. Undo that, or start a new run with another --output."
            )
        try:
            folder._own()
            status = folder.journal.status()
            if status.get("status") == "running":
                _log.info(
                    f"The run in {path} was ended without a word: by a kill, or with its machine "
                    f"({status.get('host', 'unknown')}, process {status.get('process', 'unknown')})."
                )
            folder.journal.write_status(status="running", ended=None, **_this_process())
        except OSError as error:
            folder.release()
            raise FreeflowError(f"The run folder {path} cannot be written: {error}.") from error
        return folder

    def release(self) -> None:
        """Let other processes at the folder."""
        self._lock.release()

    def _own(self) -> None:
        """Become the folder's one writer, and remove what killed ones left half-written. Raises ``FolderBusy``."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            status = self.journal.status()
            raise FolderBusy(
                f"Another process is at work in {self.path}: process {status.get('process', 'unknown')} on "
                f"{status.get('host', 'this machine')}. Two would spoil the run. Wait until it has ended, or stop it; "
                f"if there is no such process, delete {self._lock.lock_file}."
            ) from error
        for folder in (self.path, self.samples):
            remove_leftovers(folder)
        self.checkpoints.clear()

    def _taken(self) -> str | None:
        """Why no run can begin here; what a process left that was killed at its start is no reason."""
        path = self.path
        if path.is_file():
            return f"The output {path} is a file; expected a folder to create. Choose another --output."
        ours = {_LOCK, self.journal.status_file.name}
        found = [p for p in path.iterdir() if p.name not in ours] if path.is_dir() else []
        if all(p.name.startswith(".") and p.suffix == ".partial" for p in found):
            return None
        held = "a run" if self.config_file.exists() else "files"
        return (
            f"The output folder {path} already holds {held}. Choose another --output, or go on with that run: --resume."
        )


def _this_process() -> dict[str, object]:
    """Who owns a folder, for people and error messages; the lock itself is the system's."""
    return {"host": socket.gethostname(), "process": os.getpid()}


def _names(name: str) -> Iterator[Path]:
    yield DEFAULT_PARENT / name
    yield from (DEFAULT_PARENT / f"{name}-{number}" for number in itertools.count(2))


def _newest(name: str) -> Path:
    found = [p for p in DEFAULT_PARENT.glob(f"{name}*") if (p / "config.yaml").is_file()]
    if not found:
        raise ConfigError(f"--resume found no run named {name!r} in {DEFAULT_PARENT}/. Name its folder with --output.")
    return max(found, key=lambda p: (p / "config.yaml").stat().st_mtime)
