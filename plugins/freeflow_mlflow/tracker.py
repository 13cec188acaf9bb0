"""The MLflow tracker: turns what a run reports into records and hands them to the sending thread."""

from __future__ import annotations

import atexit
import math
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, final

import numpy as np
from torch import Tensor, uint8

from freeflow_core.config.component import ComponentConfig
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces.build import BuildContext
from freeflow_core.interfaces.tracker import Tracker
from freeflow_core.types import RunInfo
from freeflow_mlflow.address import redact, tracking_uri
from freeflow_mlflow.config import MlflowConfig
from freeflow_mlflow.environment import prepare_environment
from freeflow_mlflow.names import MAX_TAG, parameters, safe_name, shorten
from freeflow_mlflow.process import this_process
from freeflow_mlflow.records import FileRecord, ImageRecord, MetricRecord, RunHead, mlflow_status
from freeflow_mlflow.sender import Sender
from freeflow_mlflow.spool import Spool

_OPENING_SECONDS = 10.0


@final
class MlflowTracker(Tracker):
    """One MLflow run per training run, addressed by its id: nothing in MLflow's global state is touched.

    No method waits for MLflow but ``finish`` (at most ``finish_seconds``) and ``state`` (until the first attempt to
    open the run is over, and never past a bound that counts from the start).
    """

    def __init__(self, config: MlflowConfig) -> None:
        self._config = config
        self._sender: Sender | None = None
        self._uri = ""
        self._key = ""
        self._known_until = 0.0
        self._state: dict[str, Any] = {}

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        if not isinstance(config, MlflowConfig):
            raise ConfigError(f"The tracker 'mlflow' expects a MlflowConfig; got {type(config).__name__}.")
        return cls(config)

    def start(self, run: RunInfo, state: Mapping[str, Any]) -> None:
        config = self._config
        prepare_environment(config.timeout_seconds, config.retries, config.telemetry)
        self._uri = tracking_uri(config.uri, run.parent.folder if run.parent else run.folder)
        self._key = _text(state.get("key")) or run.key or uuid.uuid4().hex
        spool = Spool(run.folder, self._key)
        run_id = _text(state.get("run_id"))
        if spool.exists:  # an earlier process of this run may have learnt its id after the checkpoint was written
            run_id = spool.head().run_id or run_id
        tags = {
            **run.tags,
            "mlflow.source.name": f"freeflow {run.command}",
            "freeflow.folder": str(run.folder.resolve()),
        }
        head = RunHead(
            key=self._key,
            uri=redact(self._uri),
            experiment=config.experiment,
            run_name=config.run_name or run.name,
            start_time=_now(),
            tags={name: shorten(value, MAX_TAG) for name, value in {**tags, **config.tags}.items()},
            params=parameters(run.config),
            config_yaml=redact(run.config_yaml),
            run_id=run_id,
            process=this_process(),
            parent_key=run.parent.key if run.parent else None,
            has_children=run.key is not None and run.parent is None,
        )
        self._sender = Sender(self._uri, head, spool, config)
        self._known_until = time.monotonic() + config.timeout_seconds * (config.retries + 1) + _OPENING_SECONDS
        atexit.register(self._close_at_exit)
        self._sender.start()

    def log_metrics(self, metrics: Mapping[str, float], images: int) -> None:
        if self._sender is None:
            return
        now = _now()
        finite: list[MetricRecord] = []
        nonfinite: dict[str, int] = {}
        for name, number in metrics.items():
            value = float(number)
            if math.isfinite(value):
                finite.append(MetricRecord(safe_name(name), value, now, int(images)))
            else:
                nonfinite[safe_name(name)] = 1
        self._sender.put(finite, nonfinite=nonfinite)

    def log_images(self, name: str, images: Tensor, images_seen: int) -> None:
        if self._sender is None:
            return
        if images.ndim != 3 or images.shape[0] not in (1, 3, 4) or images.dtype != uint8:
            raise ValueError(
                f"The picture {name!r} must be uint8 (1|3|4, H, W); got {images.dtype} {tuple(images.shape)}."
            )
        rows = images.detach().cpu().permute(1, 2, 0).numpy()
        pixels = np.array(rows[..., 0] if rows.shape[2] == 1 else rows, order="C")  # the caller may reuse its memory
        self._sender.put(artifacts=[ImageRecord(safe_name(name), pixels, _now(), int(images_seen))])

    def log_file(self, path: Path, folder: str = "") -> None:
        if self._sender is not None and self._config.log_artifacts:
            self._sender.put(artifacts=[FileRecord(Path(path).absolute(), folder)])

    def state(self) -> dict[str, Any]:
        if self._sender is not None:
            run_id, experiment_id = self._sender.identity(self._known_until - time.monotonic())
            self._state = {
                "run_id": run_id,
                "experiment_id": experiment_id,
                "uri": redact(self._uri),
                "key": self._key,
            }
        return dict(self._state)

    def finish(self, status: str) -> None:
        if self._sender is None:
            return
        sender, self._sender = self._sender, None
        atexit.unregister(self._close_at_exit)
        sender.close(mlflow_status(status), _now(), self._config.finish_seconds)
        run_id, experiment_id = sender.identity(0.0)
        self._state = {"run_id": run_id, "experiment_id": experiment_id, "uri": redact(self._uri), "key": self._key}

    def _close_at_exit(self) -> None:
        self.finish("interrupted")


def _now() -> int:
    return time.time_ns() // 1_000_000


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
