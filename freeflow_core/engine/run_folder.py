"""One folder per run: configuration, checkpoints, pictures, metrics, report."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import final

import yaml

from freeflow_core.config import RunConfig, to_yaml
from freeflow_core.config.load import differences
from freeflow_core.engine.checkpoint import Checkpoints
from freeflow_core.errors import ConfigError, FreeflowError
from freeflow_core.files import write_text
from freeflow_core.interfaces.journal import Journal, now

DEFAULT_PARENT = Path("runs")
FREE_TO_CHANGE = ("trackers", "logging", "checkpointing", "samples", "evaluation", "training.stop_at_images")
"""Settings that a resumed run may change, because they cannot change the weights."""


@final
class RunFolder:
    """Paths of a run, and the rules for starting and resuming in one."""

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

    @classmethod
    def start(cls, config: RunConfig, command: str, output: Path | None) -> RunFolder:
        """A new folder. Raises :class:`ConfigError` when ``output`` holds another run or other files."""
        path = output or _free_name(config.name)
        if path.is_file():
            raise ConfigError(f"The output {path} is a file; expected a folder to create. Choose another --output.")
        if path.is_dir() and any(path.iterdir()):
            raise ConfigError(
                f"The output folder {path} already holds {'a run' if (path / 'config.yaml').exists() else 'files'}. "
                "Choose another --output, or go on with that run: --resume."
            )
        folder = cls(path, config.checkpointing.keep)
        try:
            path.mkdir(parents=True, exist_ok=True)
            write_text(folder.config_file, to_yaml(config))
            folder.journal.write_status(
                command=command, status="running", images=0, key=uuid.uuid4().hex, started=now()
            )
        except OSError as error:
            raise FreeflowError(f"The output folder {path} cannot be written: {error}.") from error
        return folder

    @classmethod
    def resume(cls, config: RunConfig, output: Path | None) -> RunFolder:
        """The folder of an earlier run with the same configuration.

        Raises:
            ConfigError: no such run, or settings that differ (they are listed).
        """
        path = output or _newest(config.name)
        folder = cls(path, config.checkpointing.keep)
        if not folder.config_file.is_file():
            raise ConfigError(f"--resume found no run in {path} (no config.yaml). Name its folder with --output.")
        before = yaml.safe_load(folder.config_file.read_text("utf-8"))
        if changed := differences(before, config.model_dump(mode="json"), free=FREE_TO_CHANGE):
            raise ConfigError(
                f"--resume with a changed configuration would not be the same run. Changed in {path}: "
                f"{'; '.join(changed)}. Undo that, or start a new run with another --output."
            )
        return folder


def _free_name(name: str) -> Path:
    path, number = DEFAULT_PARENT / name, 2
    while path.exists() and (path.is_file() or any(path.iterdir())):
        path, number = DEFAULT_PARENT / f"{name}-{number}", number + 1
    return path


def _newest(name: str) -> Path:
    found = [p for p in DEFAULT_PARENT.glob(f"{name}*") if (p / "config.yaml").is_file()]
    if not found:
        raise ConfigError(f"--resume found no run named {name!r} in {DEFAULT_PARENT}/. Name its folder with --output.")
    return max(found, key=lambda p: (p / "config.yaml").stat().st_mtime)
