"""How work is stopped: signals that end it after the step in hand, and the agreement of several processes on that."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType, TracebackType
from typing import Any, Self, final

import torch

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))
_SECOND = 1.0
"""Seconds after which another Ctrl-C is a second one: launchers pass on what the terminal has sent already."""


@final
class StopRequest:
    """Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP end work after the step in hand; a second Ctrl-C ends it at once.

    A context in which a signal only sets ``requested``. Schedulers and launchers send several: of all signals only
    Ctrl-C can be a second one. Those that were ignored before, as under ``nohup``, stay so. Outside the main thread
    nothing is done.

    Args:
        patient: a second Ctrl-C counts for nothing; for one of several processes, which a launcher may send it again.
    """

    def __init__(self, *, patient: bool = False) -> None:
        self.requested = False
        self._patient = patient
        self._asked_at = 0.0
        self._at_once: bool | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if (previous := signal.getsignal(number)) not in (signal.SIG_IGN, None):
                    self._previous[number] = previous
                    signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def at_once(self) -> AbstractContextManager[None]:
        """Inside, the first signal raises ``KeyboardInterrupt``: for what can be done again, such as an evaluation."""
        return self._answering(at_once=True)

    def shielded(self) -> AbstractContextManager[None]:
        """Inside, no signal raises: for what must be done, such as a checkpoint."""
        return self._answering(at_once=False)

    @contextmanager
    def _answering(self, *, at_once: bool) -> Iterator[None]:
        before, self._at_once = self._at_once, at_once
        try:
            if at_once and self.requested:
                raise KeyboardInterrupt
            yield
        finally:
            self._at_once = before

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        is_second = self.requested and number == signal.SIGINT and now - self._asked_at >= _SECOND
        if not self.requested:
            self.requested, self._asked_at = True, now
        if self._at_once or (is_second and self._at_once is None and not self._patient):
            raise KeyboardInterrupt


@final
class Agreement:
    """Whether any process of a run was asked to stop, agreed on by all after the same step.

    Asked every ``interval`` seconds or so, counted in steps, for clocks differ.

    Args:
        group: the processes, over gloo, so that no device waits; ended by :meth:`close`. None: this one alone.
    """

    def __init__(self, group: torch.distributed.ProcessGroup | None, interval: float = 0.5) -> None:
        self._group = group
        self._interval = interval
        self._every = self._steps = 0
        self._asked_at = time.monotonic()

    def restart_clock(self) -> None:
        """After something other than steps, on all processes: the next step asks."""
        self._every = 0

    def reached(self, requested: bool) -> bool:
        """To be called after each step, on all processes."""
        if self._group is None:
            return requested
        self._steps += 1
        if self._steps < self._every:
            return False
        pace = (time.monotonic() - self._asked_at) / self._steps
        told = torch.tensor([float(requested), pace])
        torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX, self._group)
        asked, slowest = told.tolist()
        # At most doubled: the first steps return early, before a device is busy.
        self._every = max(1, min(int(self._interval / max(slowest, 1e-6)), 2 * self._every))
        self._steps, self._asked_at = 0, time.monotonic()
        return asked > 0

    def close(self) -> None:
        """End gloo's threads while the interpreter stands."""
        if self._group is not None and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group(self._group)
        self._group = None
