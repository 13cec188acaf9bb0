"""A run's journal as a run of Weights & Biases."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, final
from weakref import WeakValueDictionary

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces.journal import Artifact, Journal, Metrics, Picture
from freeflow_core.interfaces.tracker import Tracker
from freeflow_core.tracking import redact
from freeflow_core.types import RunInfo
from freeflow_wandb.config import WandbConfig

_AXIS = "images"
"""Metric that all others are drawn over."""
_OPEN: WeakValueDictionary[str, Any] = WeakValueDictionary()
"""W&B's own state of the process, which it does not show: it refuses to open a run twice, so one left open is ended."""


@final
class WandbTracker(Tracker):
    """One W&B run per training run, by its key: a resumed run goes on in it.

    W&B says of no value whether it has it, least of all offline. So what was handed over is noted in
    ``handed.jsonl`` beside its files, one line a record: a kill doubles nothing that was noted. W&B takes nothing back:
    what a resumed run trains again has its values already, and gets no second ones.
    """

    def __init__(self, config: WandbConfig) -> None:
        self._config = config
        self.flush_seconds, self.finish_seconds = config.flush_seconds, config.finish_seconds
        self._run: Any

    def store(self, run: RunInfo) -> str:
        entity = f"{self._config.entity}/" if self._config.entity else ""
        return f"W&B, project {entity}{self._config.project}"

    def options(self, run: RunInfo) -> dict[str, Any]:
        return {"wandb": self._config.model_dump(mode="json")}

    def open(self, run: RunInfo, journal: Journal, notes: dict[str, Any], since: int | None) -> bool:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                f"The tracker wandb needs the package wandb ({error}). Install it with: pip install "
                "'freeflow-distill[wandb]'"
            ) from error
        config = self._config
        folder = config.folder or run.folder
        identity = run.key or run.folder.name
        self._handed_file = folder / "wandb" / f"handed-{identity}.jsonl"
        self._handed_file.parent.mkdir(parents=True, exist_ok=True)
        self._handed = set(self._handed_file.read_text("utf-8").splitlines()) if self._handed_file.is_file() else set()
        known = bool(self._handed)
        if (left := _OPEN.get(identity)) is not None:
            left.finish()
        self._run = _OPEN[identity] = wandb.init(
            project=config.project,
            entity=config.entity,
            id=identity,
            resume="allow",
            name=config.run_name or run.name,
            group=config.group or (run.parent.folder.name if run.parent else None),
            job_type=run.command,
            tags=[*config.tags, *(f"{name}:{value}"[:64] for name, value in run.tags.items())],
            config=json.loads(redact(json.dumps(dict(run.config), default=str))),
            dir=folder,
            mode=config.mode,
            reinit="create_new",
            settings=wandb.Settings(
                console="off", silent=True, disable_git=True, save_code=False, init_timeout=config.start_seconds
            ),
        )
        self._run.define_metric(_AXIS, hidden=True)
        self._run.define_metric("*", step_metric=_AXIS)
        return known

    def send_metrics(self, records: Sequence[Metrics], notes: dict[str, Any]) -> int:
        count = 0
        for record in records:
            line = json.dumps([record.images, *record.values])
            if line not in self._handed:
                self._log({**record.values, _AXIS: record.images}, line)
                count += len(record.values)
        return count

    def send_artifact(self, artifact: Artifact) -> bool:
        import wandb

        path, config = artifact.path, self._config
        line = json.dumps([artifact.images, str(path)])
        if line in self._handed:
            return False
        if isinstance(artifact, Picture):
            self._log({artifact.name: wandb.Image(str(path)), _AXIS: artifact.images}, line)
        elif config.log_artifacts and path.is_file():
            sent = wandb.Artifact(f"{path.stem}-{self._run.id}", "student" if path.suffix == ".safetensors" else "file")
            sent.add_file(str(path))
            self._run.log_artifact(sent)
            self._note(line)
        return isinstance(artifact, Picture) or config.log_artifacts

    def finish(self, status: str, time: float) -> None:
        self._run.summary["status"] = status
        self._run.finish(exit_code=0 if status in ("finished", "stopped") else 1)
        del _OPEN[self._run.id]

    def _log(self, values: dict[str, Any], line: str) -> None:
        self._run.log(values, step=len(self._handed))  # W&B drops steps that fall
        self._note(line)

    def _note(self, line: str) -> None:
        with self._handed_file.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
        self._handed.add(line)
