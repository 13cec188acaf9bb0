"""The one thread that talks to MLflow. Training only ever appends to lists."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import final

from freeflow_mlflow.address import redact, view_hint
from freeflow_mlflow.config import MlflowConfig
from freeflow_mlflow.delivery import deliver
from freeflow_mlflow.environment import quiet
from freeflow_mlflow.link import RunLink
from freeflow_mlflow.pending import MemoryPending
from freeflow_mlflow.records import Artifact, MetricRecord, RunHead
from freeflow_mlflow.spool import Spool

_LOG = logging.getLogger("freeflow")
_RETRY_INTERVALS = 6


@final
class Sender:
    """Opens the run, sends what was put in, and keeps on disk what MLflow does not take.

    A failed store is tried again every six flush intervals. Everything put in is, at any time, in memory, on disk, or
    in MLflow.

    Args:
        uri: the store, with credentials.
        head: the run.
        spool: where unsent records go; what an earlier process left there is sent first.
        config: intervals and limits.
    """

    def __init__(self, uri: str, head: RunHead, spool: Spool, config: MlflowConfig) -> None:
        self._uri = uri
        self._head = head
        self._spool = spool
        self._config = config
        self._memory = MemoryPending()
        self._link: RunLink | None = None
        self._experiment_id: str | None = None
        self._next_attempt = 0.0
        self._warned: set[str] = set()
        self._wake = threading.Condition()
        self._closing = False
        self._settled = threading.Event()
        self._abandoned = threading.Event()
        self._writing_head = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="freeflow-mlflow", daemon=True)

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def put(
        self,
        metrics: Iterable[MetricRecord] = (),
        artifacts: Iterable[Artifact] = (),
        nonfinite: Mapping[str, int] | None = None,
    ) -> None:
        """Append records; never waits for MLflow or for the disk."""
        self._memory.add(metrics, artifacts, nonfinite)
        if len(self._memory) >= self._config.buffer_metrics:
            with self._wake:
                self._wake.notify()

    def identity(self, seconds: float) -> tuple[str | None, str | None]:
        """The run's and the experiment's id; waits at most ``seconds`` for the first attempt to open the run."""
        self._settled.wait(max(0.0, seconds))
        return self._head.run_id, self._experiment_id

    def close(self, status: str, end_time: int, seconds: float) -> None:
        """Send all, end the run with MLflow's ``status``; after ``seconds`` keep the rest on disk and give up."""
        with self._wake:
            self._closing = True
            self._update_head(status=status, end_time=end_time)
            self._wake.notify()
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._abandoned.set()
            self._keep()
            self._warn("closing", f"MLflow at {redact(self._uri)} did not take everything within {seconds:g} seconds")

    def _work(self) -> None:
        with quiet():
            self._attempt()
            self._settled.set()  # also when it failed
            while not self._pause():
                self._attempt()
            self._next_attempt = 0.0
            if self._attempt() and self._end():
                return
            if not self._abandoned.is_set():
                self._keep()

    def _pause(self) -> bool:
        """Wait until there is enough to send, or for a flush interval; True when the run is over."""
        with self._wake:
            if not self._closing and len(self._memory) < self._config.buffer_metrics:
                self._wake.wait(self._config.flush_seconds)
            return self._closing

    def _attempt(self) -> bool:
        """Send all there is, or move it to disk. True when nothing is left."""
        if time.monotonic() < self._next_attempt:
            if not self._memory.is_empty():
                self._keep()
            return False
        try:
            if self._link is None:
                self._link = self._open()
            if self._spool.exists:
                deliver(self._link, self._spool, self._abandoned, self._refused)
                if not self._abandoned.is_set() and self._spool.remove_if_empty():
                    _LOG.info("MLflow has received what was kept for it.")
            deliver(self._link, self._memory, self._abandoned, self._refused)
        except Exception as error:
            self._failed(error)
            return False
        return not self._abandoned.is_set()

    def _open(self) -> RunLink:
        link = RunLink.open(self._uri, self._head)
        self._experiment_id = link.experiment_id
        self._update_head(run_id=link.run_id)
        self._settled.set()
        _LOG.info("MLflow run %s: %s", link.run_id, view_hint(self._uri, link.experiment_id, link.run_id))
        return link

    def _end(self) -> bool:
        try:
            assert self._link is not None  # a successful attempt leaves it open
            self._link.end(self._head.status, self._head.end_time)
        except Exception as error:
            self._failed(error)
            return False
        return True

    def _failed(self, error: Exception) -> None:
        self._link = None
        self._next_attempt = time.monotonic() + _RETRY_INTERVALS * self._config.flush_seconds
        if not self._abandoned.is_set():
            self._keep()
            self._warn("failed", f"MLflow at {redact(self._uri)} cannot be reached or written to ({describe(error)})")

    def _keep(self) -> None:
        """Move what is in memory to disk, with the run's head, so that even a killed process loses little."""
        try:
            with self._writing_head:  # first: records without a head belong to nobody
                self._spool.write_head(self._head)
            self._memory.move_to(self._spool)
        except Exception as error:
            if "disk" not in self._warned:
                self._warned.add("disk")
                _LOG.warning("What MLflow did not take cannot be kept in %s (%s).", self._spool.folder, error)

    def _update_head(self, **changes: str | int | None) -> None:
        with self._writing_head:
            self._head = replace(self._head, **changes)  # type: ignore[arg-type]

    def _refused(self, reason: str) -> None:
        if "refused" not in self._warned:
            self._warned.add("refused")
            _LOG.warning("MLflow's tracker skipped an image or file: %s. Later ones are skipped silently.", reason)

    def _warn(self, topic: str, problem: str) -> None:
        """One line in a run's life: a store that fails at the start mostly fails at the end as well."""
        if self._warned & {"failed", "closing"}:
            return
        self._warned.add(topic)
        run_folder = self._spool.folder.parent.parent
        _LOG.warning(
            "%s. Training is not affected; what is unsent is kept in %s, tried again during the run, and can be sent "
            "later with `freeflow mlflow-sync %s`.",
            problem,
            self._spool.folder.parent,
            run_folder,
        )


def describe(error: Exception) -> str:
    """An exception in one short line without credentials."""
    text = redact(" ".join(f"{type(error).__name__}: {error}".split()))
    return text if len(text) <= 240 else f"{text[:237]}..."
