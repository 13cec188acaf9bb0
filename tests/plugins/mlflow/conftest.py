"""One sqlite store for a test process: making its tables takes seconds."""

import os
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from filelock import FileLock
from freeflow_mlflow.config import MlflowConfig
from freeflow_mlflow.tracker import MlflowTracker

from freeflow_core.interfaces.journal import Journal
from freeflow_core.tracking import Replay, Sender
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
def _clean_environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what the tracker sets is undone
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def store_uri(tmp_path_factory):
    shared = tmp_path_factory.getbasetemp().parent / "mlflow-tables.db"
    with FileLock(shared.with_suffix(".lock")):  # of the test processes, one makes the tables
        if not shared.exists():
            _make_tables(tmp_path_factory.mktemp("tables") / "mlflow.db").rename(shared)
        own = shutil.copy(shared, tmp_path_factory.mktemp("store") / "mlflow.db")
    return f"sqlite:///{own.as_posix()}"


def _make_tables(database):
    """By two runs at once, as a comparison and its first run do."""
    config = MlflowConfig(uri=f"sqlite:///{database.as_posix()}")

    def open_run(name):
        run = RunInfo(name, "distill", database.parent / name, {}, "")
        return MlflowTracker(config).open(run, Journal(run.folder), {}, None)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(open_run, ("a", "b"))) == [False, False]
    return database


@pytest.fixture
def client(store_uri):
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=store_uri)


@pytest.fixture
def dead_uri():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def tracker(store_uri):
    def make(**options):
        quick = {"uri": store_uri, "flush_seconds": 0.05, "timeout_seconds": 1, "retries": 0}
        return MlflowTracker(MlflowConfig(**quick | options))

    return make


@pytest.fixture
def send(tracker):
    """Send all of a journal; the run's id in MLflow."""

    def make(journal, status=None, **options):
        replay = Replay(tracker(**options), journal.run(), journal)
        replay.send()
        if status is not None:
            replay.end(status, 1.8e9)
        return replay.notes["run_id"]

    return make


@pytest.fixture
def start(tracker):
    return lambda journal, **options: Sender(tracker(**options), journal.run(), journal)
