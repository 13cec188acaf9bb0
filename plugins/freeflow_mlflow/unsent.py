"""Sends what a run kept while MLflow could not be reached."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

from freeflow_core.errors import ConfigError, FreeflowError
from freeflow_mlflow.address import is_redacted, redact
from freeflow_mlflow.config import MlflowConfig
from freeflow_mlflow.delivery import deliver
from freeflow_mlflow.environment import prepare_environment, quiet
from freeflow_mlflow.link import RunLink
from freeflow_mlflow.process import is_alive
from freeflow_mlflow.records import RUNNING, mlflow_status
from freeflow_mlflow.sender import describe
from freeflow_mlflow.spool import FOLDER, Spool


@dataclass(frozen=True)
class SentReport:
    """What arrived: MLflow run ids, numbers of metrics and of artifacts; ``skipped`` says what no longer could."""

    runs: tuple[str, ...] = ()
    metrics: int = 0
    artifacts: int = 0
    skipped: tuple[str, ...] = ()


def send_unsent(folder: Path, uri: str | None = None) -> SentReport:
    """Send everything in ``<folder>/mlflow-unsent`` and remove it; what fails stays for the next time.

    Args:
        folder: a run folder, or a comparison's, which stands for all its runs.
        uri: where to; None: where the run was meant to go.

    Raises:
        ConfigError: no such folder, a run that is still going on, or a store that needs credentials, which are never
            written to disk.
        FreeflowError: MLflow fails.
    """
    if not folder.is_dir():
        raise ConfigError(f"Expected a run folder; {folder} is not a folder. Give the folder that holds {FOLDER}/.")
    folders = [folder, *sorted(path.parent for path in folder.glob(f"*/{FOLDER}"))]
    reports = [_send(spool, uri) for own in folders for spool in Spool.all_of(own)]
    return SentReport(
        runs=tuple(run for report in reports for run in report.runs),
        metrics=sum(report.metrics for report in reports),
        artifacts=sum(report.artifacts for report in reports),
        skipped=tuple(text for report in reports for text in report.skipped),
    )


def _send(spool: Spool, uri: str | None) -> SentReport:
    head = spool.head()
    address = uri or head.uri
    if head.status == RUNNING and is_alive(head.process):
        raise ConfigError(
            f"The run {head.run_name!r} is still going on (process {head.process['pid']}) and sends its records "
            "itself. Wait until it has ended."
        )
    if is_redacted(address):
        raise ConfigError(
            f"The run was to go to {address}, and credentials are not kept on disk. Give the whole address with --uri."
        )
    defaults = MlflowConfig()
    prepare_environment(defaults.timeout_seconds, defaults.retries, telemetry=False)
    metrics, artifacts = spool.count()
    skipped: list[str] = []
    try:
        with quiet():
            link = RunLink.open(address, head)
            deliver(link, spool, threading.Event(), skipped.append)
            # A process that was killed could not say how its run ended.
            status = mlflow_status("interrupted") if head.status == RUNNING else head.status
            link.end(status, head.end_time or time.time_ns() // 1_000_000)
    except ConfigError:
        raise
    except Exception as error:
        raise FreeflowError(
            f"MLflow at {redact(address)} cannot be reached or written to ({describe(error)}). What has not arrived is "
            f"still kept in {spool.folder}; start the server, or name another store with --uri, and run this again."
        ) from error
    spool.remove()
    return SentReport((link.run_id,), metrics, artifacts - len(skipped), tuple(skipped))
