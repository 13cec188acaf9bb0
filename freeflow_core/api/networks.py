"""Trained and published networks: fetched, loaded, exported."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from freeflow_core.api.results import TrainedStudent
from freeflow_core.config import ComponentChoice
from freeflow_core.engine.build import Builder
from freeflow_core.interfaces import Teacher
from freeflow_core.plugin import Manager, Registry
from freeflow_core.weights import OnProgress, WeightStatus, WeightStore


def load_student(
    name: str | Path, *, options: Mapping[str, Any] | None = None, manager: Manager | None = None
) -> TrainedStudent:
    """A trained student that samples: from its file, a run's folder, or a published one by name, fetched on first use.

    Args:
        name: a path, or a student with weights of its own, such as ``"freeflow-xl-2-256"``.
        options: of such a student, e.g. ``{"checkpoint": path}``.

    Raises:
        CheckpointError: missing, damaged, not a student.
        ConfigError: a name without weights, or options that do not fit.
    """
    return TrainedStudent.load(name, manager or Manager.load(), options)


def load_teacher(
    name: str, *, options: Mapping[str, Any] | None = None, device: str = "cpu", manager: Manager | None = None
) -> Teacher:
    """A frozen teacher by name. Raises ``UnknownComponent``, ``ConfigError`` or ``CheckpointError``."""
    builder = Builder(Registry(manager or Manager.load()), torch.device(device), seed=0)
    return builder.teacher(ComponentChoice(name=name, options=dict(options or {})))


def export(
    name: str | Path,
    path: str | Path,
    *,
    format: str | None = None,
    options: Mapping[str, Any] | None = None,
    manager: Manager | None = None,
) -> str:
    """Write a trained student for other programs; what was written, in words.

    Args:
        name: as for :func:`load_student`.
        options: likewise.
        path: the file to write, or for ``diffusers`` the folder.
        format: ``"safetensors"`` and ``"pt"``, the published format of its field; ``"pt2"``, a program of
            ``torch.export``; ``"onnx"``, with a script that samples without torch; ``"diffusers"``, a pipeline. None:
            what the suffix of ``path`` says.

    Raises:
        ConfigError: a format that is not installed or cannot carry the student; something is there already.
        CheckpointError: a student that cannot be read, or a file that cannot be written.
    """
    return load_student(name, options=options, manager=manager).export(path, format=format)


def list_weights(*, manager: Manager | None = None) -> list[WeightStatus]:
    """All published weights that the plugins offer, and whether they are in the cache."""
    store = WeightStore()
    return [store.status(weight) for weight in Registry(manager or Manager.load()).weights().values()]


def fetch(
    name: str,
    *,
    force: bool = False,
    from_file: Path | None = None,
    on_progress: OnProgress | None = None,
    manager: Manager | None = None,
) -> Path:
    """Path of published weights, by name; downloaded into the cache unless they are there.

    Args:
        force: download even then.
        from_file: copy this file into the cache, checked, rather than download.
        on_progress: ``on_progress(done, total)`` in bytes; ``total`` may be None. Called often.

    Raises:
        UnknownComponent: no plugin offers weights of this name.
        DownloadError: they cannot be fetched; the message says why and what to do.
        Interrupted: Ctrl-C; what has arrived is kept for the next call.
    """
    weight, store = Registry(manager or Manager.load()).weight(name), WeightStore()
    if from_file is not None:
        return store.add(weight, from_file, on_progress=on_progress)
    return store.fetch(weight, force=force, on_progress=on_progress)
