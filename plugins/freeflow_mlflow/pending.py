"""Records that are still to be sent."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import final

from freeflow_mlflow.records import Artifact, MetricRecord


class Pending(ABC):
    """Oldest first. What was sent is dropped afterwards, so a failure in between loses nothing. Thread-safe."""

    @abstractmethod
    def metrics(self) -> list[MetricRecord]:
        """All metrics."""

    @abstractmethod
    def drop_metrics(self, count: int) -> None:
        """Forget the oldest ``count``."""

    @abstractmethod
    def artifacts(self) -> Iterator[Artifact]:
        """Images and files, one by one, as they are now."""

    @abstractmethod
    def drop_artifact(self) -> None:
        """Forget the oldest."""

    @abstractmethod
    def nonfinite(self) -> Mapping[str, int]:
        """How many values of each metric were NaN or infinite."""

    @abstractmethod
    def drop_nonfinite(self, counts: Mapping[str, int]) -> None:
        """Take off what was reported."""

    @abstractmethod
    def add(
        self,
        metrics: Iterable[MetricRecord] = (),
        artifacts: Iterable[Artifact] = (),
        nonfinite: Mapping[str, int] | None = None,
    ) -> None:
        """Append."""

    @abstractmethod
    def is_empty(self) -> bool:
        """Nothing left to send."""


@final
class MemoryPending(Pending):
    """In memory, between the training thread and the sending one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._moving = threading.Lock()
        self._metrics: list[MetricRecord] = []
        self._artifacts: list[Artifact] = []
        self._nonfinite: Counter[str] = Counter()

    def metrics(self) -> list[MetricRecord]:
        with self._lock:
            return list(self._metrics)

    def drop_metrics(self, count: int) -> None:
        with self._lock:
            del self._metrics[:count]

    def artifacts(self) -> Iterator[Artifact]:
        with self._lock:
            return iter(list(self._artifacts))

    def drop_artifact(self) -> None:
        with self._lock:
            del self._artifacts[:1]

    def nonfinite(self) -> Mapping[str, int]:
        with self._lock:
            return dict(self._nonfinite)

    def drop_nonfinite(self, counts: Mapping[str, int]) -> None:
        with self._lock:
            self._nonfinite -= Counter(counts)

    def add(
        self,
        metrics: Iterable[MetricRecord] = (),
        artifacts: Iterable[Artifact] = (),
        nonfinite: Mapping[str, int] | None = None,
    ) -> None:
        with self._lock:
            self._metrics.extend(metrics)
            self._artifacts.extend(artifacts)
            self._nonfinite.update(nonfinite or {})

    def is_empty(self) -> bool:
        with self._lock:
            return not (self._metrics or self._artifacts or self._nonfinite)

    def __len__(self) -> int:
        """Number of metrics."""
        with self._lock:
            return len(self._metrics)

    def move_to(self, other: Pending) -> None:
        """Hand everything over. Adding goes on meanwhile: ``other`` may be a slow disk, training must not wait for it.

        What ``other`` cannot take (its exception passes through) stays here.
        """
        with self._moving:
            with self._lock:
                metrics, artifacts, nonfinite = list(self._metrics), list(self._artifacts), dict(self._nonfinite)
            other.add(metrics, artifacts, nonfinite)
            with self._lock:
                del self._metrics[: len(metrics)], self._artifacts[: len(artifacts)]
                self._nonfinite -= Counter(nonfinite)
