"""Sends what is pending, in an order in which a failing artifact store holds up no metric."""

from __future__ import annotations

import threading
from collections.abc import Callable

from freeflow_mlflow.link import METRICS_PER_REQUEST, Refused, RunLink
from freeflow_mlflow.pending import Pending


def deliver(link: RunLink, pending: Pending, stop: threading.Event, refused: Callable[[str], None]) -> None:
    """Send everything, dropping from ``pending`` what has arrived; what a failure leaves is still there.

    Args:
        link: the open run.
        pending: records, oldest first.
        stop: set by another thread that has taken the records over; checked between requests.
        refused: told of every artifact that never can be sent.

    Raises:
        Exception: whatever MLflow raises when the store fails.
    """
    metrics = pending.metrics()
    sent = 0
    try:
        while sent < len(metrics) and not stop.is_set():
            batch = metrics[sent : sent + METRICS_PER_REQUEST]
            link.send_metrics(batch)
            sent += len(batch)
    finally:  # once, not per request: on disk a drop rewrites the file
        pending.drop_metrics(sent)
    if (counts := pending.nonfinite()) and not stop.is_set():
        link.send_nonfinite(counts)
        pending.drop_nonfinite(counts)
    if not stop.is_set():
        link.send_config()
    for artifact in pending.artifacts():
        if stop.is_set():
            return
        try:
            link.send_artifact(artifact)
        except Refused as error:
            refused(str(error))
        pending.drop_artifact()
