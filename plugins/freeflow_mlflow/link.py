"""An MLflow run that can be written to. The only module that knows MLflow's client."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self, final

from freeflow_core.errors import ConfigError
from freeflow_mlflow.address import artifact_location, is_database
from freeflow_mlflow.names import MAX_TAG, shorten
from freeflow_mlflow.records import RUNNING, Artifact, FileRecord, MetricRecord, RunHead

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEY_TAG = "freeflow.key"
PARENT_KEY_TAG = "freeflow.parent_key"
PARENT_TAG = "mlflow.parentRunId"
PREVIOUS_TAG = "freeflow.previous_run"
CHANGED_TAG = "freeflow.changed_on_resume"
CONFIG_TAG = "freeflow.config"
NONFINITE_TAG = "nonfinite/"
METRICS_PER_REQUEST = 1000
_PARAMETERS_PER_REQUEST = 100
_CONFIG_FILE = "config.yaml"

# alembic, which makes MLflow's tables, keeps its context in module globals: two threads must not run it at once.
_MAKING_TABLES = threading.Lock()


class Refused(Exception):
    """An artifact that can never be sent, so that keeping it would only hold up those behind it."""


@final
class RunLink:
    """An open run. Every method may raise what MLflow raises; nothing here retries."""

    def __init__(self, client: MlflowClient, run_id: str, experiment_id: str) -> None:
        self._client = client
        self.run_id = run_id
        self.experiment_id = experiment_id
        self._config_yaml = ""
        self._children_of = ""

    @classmethod
    def open(cls, uri: str, head: RunHead) -> Self:
        """Find the run again (by its id, else by our key) or make it; then log the parameters it lacks.

        A run that is gone is replaced by a new one, tagged with the old one's id. Parameters that a resumed run
        changed cannot be changed in MLflow; a tag lists them.

        Raises:
            ConfigError: the experiment was deleted.
        """
        with _opening(uri):
            from mlflow import MlflowClient

            client = MlflowClient(tracking_uri=uri)
            experiment_id = _experiment(client, head.experiment, artifact_location(uri))
        run = _find(client, head, experiment_id)
        if run is None:
            tags = {**head.tags, KEY_TAG: head.key}
            if head.run_id:
                tags[PREVIOUS_TAG] = head.run_id
            if head.parent_key:
                tags[PARENT_KEY_TAG] = head.parent_key
            run = client.create_run(experiment_id, start_time=head.start_time, tags=tags, run_name=head.run_name)
        elif head.status == RUNNING and run.info.status != RUNNING:
            client.update_run(run.info.run_id, status=RUNNING)
        link = cls(client, run.info.run_id, run.info.experiment_id)
        if head.parent_key and PARENT_TAG not in run.data.tags:
            link._join(head.parent_key)
        if head.has_children:
            link._children_of = head.key
            link._adopt()
        link._log_parameters(head.params, run.data.params)
        if CONFIG_TAG not in run.data.tags:
            link._config_yaml = head.config_yaml
        return link

    def send_metrics(self, records: Sequence[MetricRecord]) -> None:
        """At most ``METRICS_PER_REQUEST``. Sending one again changes nothing: MLflow keys them by all their values."""
        from mlflow.entities import Metric

        metrics = [Metric(record.name, record.value, record.time, record.step) for record in records]
        self._client.log_batch(self.run_id, metrics=metrics, synchronous=True)

    def send_nonfinite(self, counts: Mapping[str, int]) -> None:
        """Add to the tags ``nonfinite/<metric>``: MLflow would store infinity as 1.8e308."""
        tags = self._client.get_run(self.run_id).data.tags
        for name, count in counts.items():
            tag = f"{NONFINITE_TAG}{name}"
            self._client.set_tag(self.run_id, tag, str(int(tags.get(tag, 0)) + count))

    def send_config(self) -> None:
        """The configuration as ``config.yaml``, unless the run has it. Not part of opening, since an artifact store
        that fails must not keep metrics out."""
        if self._config_yaml:
            self._client.log_text(self.run_id, self._config_yaml, _CONFIG_FILE)
            self._client.set_tag(self.run_id, CONFIG_TAG, _CONFIG_FILE)
            self._config_yaml = ""

    def send_artifact(self, artifact: Artifact) -> None:
        """One image, file or folder. Raises :class:`Refused` when it never can be sent."""
        from mlflow.exceptions import MlflowException

        if isinstance(artifact, FileRecord) and not artifact.path.exists():
            raise Refused(f"{artifact.path} no longer exists")
        try:
            self._send(artifact)
        except MlflowException as error:
            if error.error_code == "INVALID_PARAMETER_VALUE":
                raise Refused(str(error)) from error
            raise
        except (ValueError, TypeError, FileNotFoundError) as error:
            raise Refused(str(error)) from error

    def end(self, status: str, end_time: int | None) -> None:
        """Set MLflow's status and the time of the end, in milliseconds since 1970."""
        self._adopt()
        self._client.set_terminated(self.run_id, status, end_time)

    def _join(self, parent_key: str) -> None:
        """Become a child of the run of that key, if MLflow has it; else that run adopts this one when it gets there."""
        if parents := _search(self._client, self.experiment_id, KEY_TAG, parent_key):
            self._client.set_tag(self.run_id, PARENT_TAG, parents[0].info.run_id)

    def _adopt(self) -> None:
        """Take in the runs that name this one's key but were here before it."""
        if not self._children_of:
            return
        for child in _search(self._client, self.experiment_id, PARENT_KEY_TAG, self._children_of):
            if child.data.tags.get(PARENT_TAG) != self.run_id:
                self._client.set_tag(child.info.run_id, PARENT_TAG, self.run_id)

    def _send(self, artifact: Artifact) -> None:
        if not isinstance(artifact, FileRecord):
            self._client.log_image(
                self.run_id,
                artifact.pixels,
                key=artifact.name,
                step=artifact.step,
                timestamp=artifact.time,
                synchronous=True,
            )
        elif artifact.path.is_dir():
            target = f"{artifact.folder}/{artifact.path.name}" if artifact.folder else artifact.path.name
            self._client.log_artifacts(self.run_id, str(artifact.path), target)
        else:
            self._client.log_artifact(self.run_id, str(artifact.path), artifact.folder or None)

    def _log_parameters(self, wanted: Mapping[str, str], logged: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        new = [Param(name, value) for name, value in wanted.items() if name not in logged]
        for start in range(0, len(new), _PARAMETERS_PER_REQUEST):
            self._client.log_batch(self.run_id, params=new[start : start + _PARAMETERS_PER_REQUEST], synchronous=True)
        changed = [f"{name}={value}" for name, value in wanted.items() if logged.get(name, value) != value]
        if changed:
            self._client.set_tag(self.run_id, CHANGED_TAG, shorten("; ".join(changed), MAX_TAG))


@contextmanager
def _opening(uri: str) -> Iterator[None]:
    if not is_database(uri):
        yield
        return
    with _MAKING_TABLES:
        yield


def _experiment(client: MlflowClient, name: str, location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException:  # another run may have made it in the meantime
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise ConfigError(
            f"The MLflow experiment {name!r} was deleted. Restore it with `mlflow experiments restore "
            f"--experiment-id {found.experiment_id}`, or name another with the tracker's option `experiment`."
        )
    return found.experiment_id


def _find(client: MlflowClient, head: RunHead, experiment_id: str) -> Any | None:
    from mlflow.exceptions import MlflowException

    if head.run_id:
        try:
            run = client.get_run(head.run_id)
            if run.info.lifecycle_stage == "active":
                return run
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    found = _search(client, experiment_id, KEY_TAG, head.key)
    return found[0] if found else None


def _search(client: MlflowClient, experiment_id: str, tag: str, value: str) -> list[Any]:
    """All active runs of an experiment with that tag."""
    found: list[Any] = []
    token: str | None = None
    while True:
        page = client.search_runs([experiment_id], filter_string=f"tags.`{tag}` = '{value}'", page_token=token)
        found.extend(page)
        token = page.token
        if not token:
            return found
