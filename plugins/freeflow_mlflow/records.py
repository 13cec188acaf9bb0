"""What travels to MLflow, as plain values: a run's head, its metrics, images and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

RUNNING = "RUNNING"
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED", "interrupted": "KILLED"}


def mlflow_status(status: str) -> str:
    """MLflow's word for the end of a run; one that we do not know counts as a failure."""
    return _STATUS.get(status, "FAILED")


@dataclass(frozen=True)
class MetricRecord:
    """One finite scalar. ``time`` in milliseconds since 1970, ``step`` in images seen."""

    name: str
    value: float
    time: int
    step: int


@dataclass(frozen=True)
class ImageRecord:
    """One picture, uint8 (H, W) or (H, W, 3|4)."""

    name: str
    pixels: NDArray[np.uint8]
    time: int
    step: int


@dataclass(frozen=True)
class FileRecord:
    """A file or folder, read when it is sent, and the artifact folder it goes to."""

    path: Path
    folder: str = ""


Artifact: TypeAlias = ImageRecord | FileRecord


@dataclass(frozen=True)
class RunHead:
    """All that is needed to make, or find again, the MLflow run.

    Args:
        key: our own identity of the run, a tag in MLflow: a creation that timed out but succeeded is found again.
        uri: where it should go, without credentials.
        start_time: milliseconds since 1970, as ``end_time``.
        run_id: MLflow's identity, once known.
        status: MLflow's word: RUNNING until the run has ended.
        parent_key: key of the run that this one belongs to, or None.
        has_children: others will name this run as the one they belong to.
    """

    key: str
    uri: str
    experiment: str
    run_name: str
    start_time: int
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    config_yaml: str = ""
    run_id: str | None = None
    status: str = RUNNING
    end_time: int | None = None
    process: Mapping[str, Any] = field(default_factory=dict)
    parent_key: str | None = None
    has_children: bool = False
