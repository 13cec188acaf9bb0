"""The processes of a run, and which of them is gone when one no longer answers."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, final

import psutil

from freeflow_core.config import RuntimeConfig
from freeflow_core.engine.process import Process, from_each, is_failed_exchange, start_accelerator
from freeflow_core.errors import FreeflowError
from freeflow_core.plugin.culprit import described

if TYPE_CHECKING:
    from accelerate import Accelerator

_PATIENCE = 3.0
"""Seconds in which a process that has closed its connections is given time to end."""


@contextmanager
def joined(runtime: RuntimeConfig) -> Iterator[Accelerator]:
    """The processes of a command that keeps nothing but its result, which name one of them that dies meanwhile.

    Raises what :func:`start_accelerator` and :meth:`Peers.watched` do.
    """
    accelerator = start_accelerator(runtime)
    with Peers(accelerator).watched(lambda: "Give the same command again."):
        yield accelerator


@final
class Peers:
    """Where each process of a run lives, noted while all are there. To be made by all alike."""

    def __init__(self, process: Process) -> None:
        self._host = socket.gethostname()
        self._all = from_each(process, [(self._host, os.getpid())])

    @contextmanager
    def watched(self, onward: Callable[[], str]) -> Iterator[None]:
        """Inside, an exchange that fails is told by the process that is gone, and then what ``onward`` says to do.

        Raises ``FreeflowError``.
        """
        try:
            yield
        except RuntimeError as error:
            if len(self._all) == 1 or not is_failed_exchange(error):
                raise
            raise FreeflowError(f"{self._lost(error)} {onward()}") from error

    def _lost(self, error: RuntimeError) -> str:
        until = time.monotonic() + _PATIENCE
        while not (gone := self._gone()) and time.monotonic() < until:
            time.sleep(0.05)
        if gone:
            names = ", ".join(f"{rank} (pid {self._all[rank][1]} on {self._host})" for rank in gone)
            what = f"process {names} is" if len(gone) == 1 else f"processes {names} are"
            return (
                f"Of the run's {len(self._all)} processes, {what} gone: killed, by the system for lack of memory "
                "perhaps, or ended by an error of its own, which stands above."
            )
        if elsewhere := sorted({host for host, _ in self._all} - {self._host}):
            return (
                f"A process of the run on {' or '.join(elsewhere)} is gone or cannot be reached ({described(error)})."
            )
        return (
            f"The run's {len(self._all)} processes no longer hear each other, though all are there: {described(error)}."
        )

    def _gone(self) -> list[int]:
        """Ranks on this machine whose process has ended, waited for or not."""
        return [rank for rank, (host, number) in enumerate(self._all) if host == self._host and _has_ended(number)]


def _has_ended(number: int) -> bool:
    try:
        return psutil.Process(number).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True
