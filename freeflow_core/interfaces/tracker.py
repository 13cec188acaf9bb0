"""Where metrics, images and files go."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from freeflow_core.interfaces.build import Buildable
from freeflow_core.interfaces.journal import Artifact, Journal, Metrics
from freeflow_core.types import RunInfo


class Tracker(Buildable):
    """A copy of a run's journal in another place.

    On the main process only, in a thread beside the training and one at a time, so that methods may wait. One that
    raises costs a warning; later the tracker is opened again, and is sent what it had not taken, also by the next
    process. So a record may be sent twice: when the process was killed before it could note that it had arrived.

    Attributes:
        flush_seconds, buffer_metrics: records are sent after so many seconds, or metric values.
        finish_seconds: longest wait at the end of a run; what is left can be sent later.
        sync_command: what sends it, without the run folder.
    """

    flush_seconds: float = 10.0
    buffer_metrics: int = 500
    finish_seconds: float = 60.0
    sync_command: str = ""

    @abstractmethod
    def store(self, run: RunInfo) -> str:
        """Where to, without credentials: each store is sent the whole journal. Called first; returns at once."""

    def options(self, run: RunInfo) -> dict[str, Any]:
        """JSON values without credentials, kept in the run folder, that build the tracker again for a later sending."""
        return {}

    @abstractmethod
    def open(self, run: RunInfo, journal: Journal, notes: dict[str, Any], since: int | None) -> bool:
        """Make the run, or go on with the one that is there.

        A run with ``run.parent`` belongs to the run of that key, which need not have been here before.

        Args:
            journal: all records; those that a resumed run took back are missing.
            notes: JSON values to find the run again; what is put there is kept in the run folder.
            since: images seen at the last record that is known to have arrived; None: send all of them.

        Returns:
            Whether what had arrived is still there; if not, all is sent again.
        """

    @abstractmethod
    def send_metrics(self, records: Sequence[Metrics], notes: dict[str, Any]) -> int:
        """At most about 1000 values, oldest first; how many were new here. ``notes`` are kept if nothing is raised."""

    @abstractmethod
    def send_artifact(self, artifact: Artifact) -> bool:
        """A picture, file or folder that exists; whether it was new here. Those that come later wait for it."""

    @abstractmethod
    def finish(self, status: str, time: float) -> None:
        """``finished``, ``stopped``, ``interrupted`` or ``failed``, at ``time`` in seconds since 1970."""
