"""One sqlite store for all tests: making its tables takes seconds."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from freeflow_mlflow.config import MlflowConfig
from freeflow_mlflow.tracker import MlflowTracker

from freeflow_core.interfaces.build import BuildContext
from freeflow_core.types import RunInfo

VARIABLES = (
    "MLFLOW_DISABLE_TELEMETRY",
    "DO_NOT_TRACK",
    "MLFLOW_HTTP_REQUEST_TIMEOUT",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT",
    "MLFLOW_TRACKING_URI",
)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what the tracker sets is undone
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def store_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{(tmp_path_factory.mktemp('store') / 'mlflow.db').as_posix()}"


@pytest.fixture
def client(store_uri: str) -> Any:
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=store_uri)


@pytest.fixture
def dead_uri() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunInfo]:
    def make(name: str = "first", config: dict[str, Any] | None = None, resumed: bool = False) -> RunInfo:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True, exist_ok=True)
        values = config or {"name": name, "training": {"batch_size": 64, "images": 1280}, "seed": 3}
        return RunInfo(name, "distill", folder, values, f"name: {name}\n", resumed)

    return make


@pytest.fixture
def make_tracker(store_uri: str) -> Iterator[Callable[..., MlflowTracker]]:
    made: list[MlflowTracker] = []

    def make(**options: Any) -> MlflowTracker:
        config = MlflowConfig(**{"uri": store_uri, "flush_seconds": 0.05, "timeout_seconds": 1, "retries": 0} | options)
        context = BuildContext(torch.device("cpu"), 0, lambda kind, name, options: None)
        made.append(MlflowTracker.from_config(config, context))
        return made[-1]

    yield make
    for tracker in made:
        tracker.finish("failed")
