"""Options of the MLflow tracker."""

from pydantic import Field, PositiveFloat, PositiveInt

from freeflow_core.config.component import ComponentConfig


class MlflowConfig(ComponentConfig):
    """MLflow run with parameters, metrics by images seen, pictures and files; survives a dead server.

    Source: https://mlflow.org
    """

    uri: str | None = Field(None, min_length=1)
    """Tracking URI (http://host:5000, sqlite:////folder/mlflow.db). null: the environment variable MLFLOW_TRACKING_URI,
    else mlflow.db next to the run folder."""
    experiment: str = Field("freeflow", min_length=1, max_length=500)
    """Experiment; created when it is missing."""
    run_name: str | None = Field(None, min_length=1, max_length=250, description="Null: teacher, objective and seed.")
    tags: dict[str, str] = Field(default_factory=dict, description="Tags of the MLflow run.")
    buffer_metrics: PositiveInt = Field(500, description="Metric values gathered at most before they are sent.")
    flush_seconds: PositiveFloat = Field(10.0, description="Seconds after which they are sent in any case.")
    timeout_seconds: PositiveInt = 10
    """Seconds a request may wait for the server; MLFLOW_HTTP_REQUEST_TIMEOUT, when set, wins."""
    retries: int = Field(1, ge=0, le=10, description="Repeats of a request; MLFLOW_HTTP_REQUEST_MAX_RETRIES wins.")
    finish_seconds: PositiveFloat = 60.0
    """Longest wait at the end of a run for what is still to be sent; the rest can be sent later."""
    log_artifacts: bool = True
    """Send files (student, tables, report). Images and config.yaml go anyway."""
    telemetry: bool = Field(False, description="Let MLflow report its use to its makers.")
