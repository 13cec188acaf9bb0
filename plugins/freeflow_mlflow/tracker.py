"""A run's journal as an MLflow run."""

from __future__ import annotations

import logging
import math
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar, final

from filelock import FileLock
from PIL import Image

from freeflow_core.errors import ConfigError
from freeflow_core.files import remove_leftovers, replacing
from freeflow_core.interfaces.journal import Artifact, Journal, Metrics, Picture
from freeflow_core.interfaces.tracker import Tracker
from freeflow_core.tracking import Sender, redact
from freeflow_core.types import RunInfo
from freeflow_mlflow.config import MlflowConfig
from freeflow_mlflow.description import (
    MAX_TAG,
    description,
    facts,
    parameters,
    safe_name,
    shorten,
    shown_name,
    surroundings,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

_log = logging.getLogger("freeflow")
_T = TypeVar("_T")
_SQLITE = re.compile(r"^sqlite(\+\w+)?:///")
_METRICS_PER_REQUEST, _OTHERS_PER_REQUEST = 1000, 100
_KEY, _PARENT_KEY, _PARENT = "freeflow.key", "freeflow.parent_key", "mlflow.parentRunId"
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED", "interrupted": "KILLED"}
_PICTURE = re.compile(r"^images/(.+)[+%]step[+%](\d+)[+%]timestamp[+%](\d+)[+%].*\.png$")
_CONSTANT = re.compile(r"evaluation/((data|teacher[^/]*)/(?!single_step)|[^/]+/evaluations$)")
"""Scores of what is not trained, and numbers of passes: the same at every step, so that a chart would show nothing.
They stand in the table of the run's description."""
_MAKING_TABLES = threading.Lock()
"""alembic, which makes MLflow's tables, keeps its context in module globals: two threads must not run it at once."""


class Row(NamedTuple):
    """What MLflow tells the values of a metric, or pictures, apart by: images seen; milliseconds since 1970."""

    name: str
    step: int
    time: int


_Taken: TypeAlias = set[Row | tuple[str, int]]


@final
class MlflowTracker(Tracker):
    """One MLflow run per training run, found by the tag of its key: nothing in MLflow's global state is touched.

    A request may have arrived though the process was killed before it noted that. So a run that is there already is
    asked what it has from the last noted step on. MLflow takes nothing back: a value that a resumed run cut from its
    journal and trained again stays as it was, and its step gets no second one.
    """

    sync_command = "freeflow mlflow-sync"

    def __init__(self, config: MlflowConfig) -> None:
        self._config, self._id = config, ""
        self.flush_seconds, self.finish_seconds = config.flush_seconds, config.finish_seconds
        self.buffer_metrics = config.buffer_metrics
        self._client: MlflowClient

    def store(self, run: RunInfo) -> str:
        return f"MLflow at {redact(self._uri(run))}, experiment {self._config.experiment!r}"

    def options(self, run: RunInfo) -> dict[str, Any]:
        return {"mlflow": {**self._config.model_dump(), "uri": redact(self._uri(run))}}

    def open(self, run: RunInfo, journal: Journal, notes: dict[str, Any], since: int | None) -> bool:
        uri, config = self._uri(run), self._config
        prepare_environment(config)
        with nullcontext() if is_server(uri) else _MAKING_TABLES:
            from mlflow import MlflowClient

            with _opening(uri):
                self._client = MlflowClient(tracking_uri=uri)
            experiment = self._experiment(artifact_location(uri))
        key, earlier = run.key or str(run.folder.resolve()), notes.get("run_id")
        found = next(iter(self._search(experiment, _KEY, key)), None)
        is_new = found is None
        if found is None:
            found = self._create(experiment, key, run, journal, earlier)
        elif found.info.status != "RUNNING":
            self._client.update_run(found.info.run_id, status="RUNNING")
        self._id = found.info.run_id
        if self._id != earlier:
            _log.info("MLflow run %s: %s", self._id, view_hint(uri, experiment, self._id))
            since = None
        if since is None:
            notes["nonfinite"] = {}
        notes |= {"run_id": self._id, "experiment_id": experiment}
        self._join(experiment, key, run, found.data.tags)
        self._log_parameters(parameters(run.config), found.data.params)
        self._metrics_taken = set() if is_new else self._read_metrics_back(journal, since or 0, found.data.metrics)
        self._pictures_taken: _Taken | None = set() if is_new else None
        self._journal, self._folder = journal, run.folder
        return self._id == earlier

    def send_metrics(self, records: Sequence[Metrics], notes: dict[str, Any]) -> int:
        from mlflow.entities import Metric, RunTag

        new: list[Metric] = []
        nonfinite: dict[str, int] = {}
        for record in records:
            for row, value in zip(_rows(record), record.values.values(), strict=True):
                if _CONSTANT.match(row.name):
                    continue
                if not math.isfinite(value):  # MLflow would store infinity as 1.8e308
                    nonfinite[row.name] = nonfinite.get(row.name, notes["nonfinite"].get(row.name, 0)) + 1
                elif not _is_in(self._metrics_taken, row):
                    new.append(Metric(row.name, value, row.time, row.step))
        for metrics in _batches(new, _METRICS_PER_REQUEST):
            self._client.log_batch(self._id, metrics=metrics, synchronous=True)
        counts = [RunTag(f"nonfinite/{name}", str(count)) for name, count in nonfinite.items()]
        for tags in _batches(counts, _OTHERS_PER_REQUEST):
            self._client.log_batch(self._id, tags=tags, synchronous=True)
        notes["nonfinite"] |= nonfinite
        return len(new)

    def send_artifact(self, artifact: Artifact) -> bool:
        path = artifact.path
        if isinstance(artifact, Picture):
            (row,) = _rows(artifact)
            if is_new := not _is_in(self._read_pictures_back(), row):
                with Image.open(path) as image:
                    self._client.log_image(self._id, image, None, row.name, row.step, row.time, synchronous=True)
            return is_new
        if path.suffix == ".yaml":  # configurations: always, but without credentials
            self._client.log_text(self._id, redact(path.read_text("utf-8")), path.name)
        elif self._config.log_artifacts:
            file, folder = path.absolute(), self._folder.absolute()
            below = file.parent.relative_to(folder) if file.is_relative_to(folder) else Path()  # as the report links it
            self._client.log_artifact(self._id, str(path), below.as_posix() if below.parts else None)
        return self._config.log_artifacts

    def finish(self, status: str, time: float) -> None:
        if text := description(self._folder):
            self._client.set_tag(self._id, "mlflow.note.content", shorten(text, MAX_TAG))
        self._client.set_terminated(self._id, _STATUS.get(status, "FAILED"), _milliseconds(time))

    def _uri(self, run: RunInfo) -> str:
        return tracking_uri(self._config.uri, run.parent.folder if run.parent else run.folder)

    def _experiment(self, location: str | None) -> str:
        """Its id. Raises :class:`ConfigError` when it was deleted."""
        from mlflow.exceptions import MlflowException

        name = self._config.experiment
        if (found := self._client.get_experiment_by_name(name)) is None:
            try:
                return self._client.create_experiment(name, location)
            except MlflowException:  # another process may have made it in the meantime
                if (found := self._client.get_experiment_by_name(name)) is None:
                    raise
        if found.lifecycle_stage != "active":
            raise ConfigError(
                f"The MLflow experiment {name!r} was deleted. Restore it with `mlflow experiments restore "
                f"--experiment-id {found.experiment_id}`, or name another with the tracker's option `experiment`."
            )
        return found.experiment_id

    def _create(self, experiment: str, key: str, run: RunInfo, journal: Journal, lost: str | None) -> Any:
        config, folder = self._config, str(run.folder.resolve())
        tags = {**surroundings(), "mlflow.source.name": f"freeflow {run.command}", "freeflow.folder": folder}
        tags |= {**facts(run.config), **run.tags, **config.tags}
        tags |= {_KEY: key} | ({_PARENT_KEY: run.parent.key} if run.parent else {})
        tags |= {"freeflow.previous_run": lost} if lost else {}
        tags = {name: shorten(text, MAX_TAG) for name, text in tags.items()}
        started = _milliseconds(journal.status().get("started", 0.0))
        return self._client.create_run(experiment, started, tags, config.run_name or shown_name(run))

    def _join(self, experiment: str, key: str, run: RunInfo, tags: Mapping[str, str]) -> None:
        """Become a child of the parent, if MLflow has it; a parent adopts the children that were here before it."""
        if run.parent is None:
            for child in self._search(experiment, _PARENT_KEY, key):
                if child.data.tags.get(_PARENT) != self._id:
                    self._client.set_tag(child.info.run_id, _PARENT, self._id)
        elif _PARENT not in tags:
            for parent in self._search(experiment, _KEY, run.parent.key):
                self._client.set_tag(self._id, _PARENT, parent.info.run_id)

    def _log_parameters(self, wanted: Mapping[str, str], logged: Mapping[str, str]) -> None:
        """MLflow refuses to change those of a resumed run: they stay, and a tag lists the new values."""
        from mlflow.entities import Param

        new = [Param(name, value) for name, value in wanted.items() if name not in logged]
        for params in _batches(new, _OTHERS_PER_REQUEST):
            self._client.log_batch(self._id, params=params, synchronous=True)
        if changed := [f"{name}={value}" for name, value in wanted.items() if logged.get(name, value) != value]:
            self._client.set_tag(self._id, "freeflow.changed_on_resume", shorten("; ".join(changed), MAX_TAG))

    def _read_metrics_back(self, journal: Journal, since: int, logged: Iterable[str]) -> _Taken:
        histories = (self._client.get_metric_history(self._id, name) for name in logged)
        rows = {Row(m.key, m.step, m.timestamp) for history in histories for m in history if m.step >= since}
        return _taken(rows, (row for record, _ in journal.metrics() if record.images >= since for row in _rows(record)))

    def _read_pictures_back(self) -> _Taken:
        if self._pictures_taken is None:
            found = (_PICTURE.match(item.path) for item in self._client.list_artifacts(self._id, "images"))
            rows = {Row(match[1].replace("~", "/"), int(match[2]), int(match[3])) for match in found if match}
            artifacts = (artifact for artifact, _ in self._journal.artifacts())
            self._pictures_taken = _taken(rows, (row for artifact in artifacts for row in _rows(artifact)))
        return self._pictures_taken

    def _search(self, experiment: str, tag: str, value: str) -> list[Any]:
        return list(self._client.search_runs([experiment], f"tags.`{tag}` = '{value}'", max_results=50_000))


def prepare_environment(config: MlflowConfig) -> None:
    """Set what the user has not set. Must run before mlflow is imported: telemetry starts at its import.

    MLflow's own defaults let a dead server hold a call for four minutes.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(config.timeout_seconds))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(config.retries))
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    if not config.telemetry:
        os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    for name in ("mlflow.store.db.utils", "alembic.runtime.migration", "urllib3.connectionpool"):
        logging.getLogger(name).addFilter(_is_loud)


def _is_loud(record: logging.LogRecord) -> bool:
    """Tables made, and requests repeated, by a run's tracker: its one warning says what matters."""
    return record.threadName != Sender.THREAD or record.levelno >= logging.ERROR


def _rows(record: Metrics | Artifact) -> list[Row]:
    names = record.values if isinstance(record, Metrics) else [getattr(record, "name", "")]
    return [Row(safe_name(name), record.images, _milliseconds(record.time)) for name in names]


def _taken(rows: set[Row], journal: Iterable[Row]) -> _Taken:
    """What MLflow has; by name and step alone what the journal has no more."""
    return rows | {(row.name, row.step) for row in rows.difference(journal)}


def _is_in(taken: _Taken, row: Row) -> bool:
    return row in taken or (row.name, row.step) in taken


def _batches(values: list[_T], size: int) -> Iterator[list[_T]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def tracking_uri(configured: str | None, run_folder: Path) -> str:
    """The configured URI, else the environment's, else ``mlflow.db`` next to the folder of the run.

    For a run of a comparison that is the comparison's folder, so that all its runs are in one store.
    """
    beside = f"sqlite:///{(run_folder.resolve().parent / 'mlflow.db').as_posix()}"
    return configured or os.environ.get("MLFLOW_TRACKING_URI") or beside


def database_file(uri: str) -> Path | None:
    """The file of a sqlite URI; None for other places, and for a database in memory."""
    if not (match := _SQLITE.match(uri)):
        return None
    name = uri[match.end() :].partition("?")[0]
    return Path(name).resolve() if name and name != ":memory:" else None


@contextmanager
def _opening(uri: str) -> Iterator[None]:
    """What is done inside opens a database whose tables are all there, or fails with what to do about it.

    Raises:
        ConfigError: the file is no database of this MLflow.
    """
    if (path := database_file(uri)) is None:
        yield
        return
    make_database(path)
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())
        if "locked" in text:
            raise
        raise ConfigError(
            f"The MLflow database {path} cannot be used ({text[:120]}): a process was killed as it made or changed its "
            f"tables, or it is of another version. Move it away, and a new one is made, to which `freeflow mlflow-sync "
            f"RUN_FOLDER` sends a run again; or, of an older version, run `mlflow db upgrade {redact(uri)}`."
        ) from error


def make_database(path: Path) -> None:
    """Make MLflow's tables, unless the file is there, under another name first: a kill leaves nothing half made.

    Raises:
        OSError: the folder cannot be written.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        remove_leftovers(path.parent, f".{path.name}.*.partial*")
        if path.exists():  # made by another process in the meantime
            return
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        with replacing(path) as temporary:
            store = SqlAlchemyStore(f"sqlite:///{temporary.as_posix()}", path.with_name("mlartifacts").as_uri())
            store.engine.dispose()


def artifact_location(uri: str) -> str | None:
    """Where a new experiment keeps its files: next to a sqlite file; ``None`` leaves the choice to the server.

    MLflow's own choice for sqlite is a folder in the working directory, which a later run may not share.
    """
    path = database_file(uri)
    return None if path is None else path.with_name("mlartifacts").as_uri()


def is_server(uri: str) -> bool:
    """False where this process itself opens the database, and may make its tables."""
    return uri.startswith(("http:", "https:", "databricks"))


def view_hint(uri: str, experiment_id: str, run_id: str) -> str:
    """What to open, or to run, to look at a run."""
    if is_server(uri):
        return f"{redact(uri).rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"
    page = f"http://127.0.0.1:5000/#/experiments/{experiment_id}/runs/{run_id}"
    return f"mlflow ui --backend-store-uri {redact(uri)}, then {page}"
