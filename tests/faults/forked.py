"""``freeflow`` in forked processes: no start-up of seconds each, so that hundreds of them can be ended in minutes."""

import atexit
import contextlib
import importlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from freeflow_cli.main import main


class Ended(NamedTuple):
    """How the first process ended (negative: by that signal), after how many seconds; what all of them printed."""

    code: int
    seconds: float
    text: str


@dataclass
class Forked:
    """Processes that run one command line together.

    ``prepare`` is called in each of them first, with its rank; ``variables`` are of their environment.
    """

    arguments: Sequence[str]
    log: Path
    num_processes: int = 1
    variables: dict[str, str] = field(default_factory=dict)
    prepare: Callable[[int], None] | None = None

    def __post_init__(self) -> None:
        self.log.write_text("")
        self.began = time.monotonic()
        port = str(_free_port())
        self._codes: dict[int, int] = {}
        self.pids = [self._fork(rank, port) for rank in range(self.num_processes)]

    def send(self, number: int) -> None:
        """To those that have not been seen to end."""
        for pid in self.pids:
            if pid not in self._codes:
                os.kill(pid, number)

    def wait(self, seconds: float | None = None) -> Ended | None:
        """None where they have not all ended in time; who is left by a process that failed is killed."""
        while True:
            for pid in [pid for pid in self.pids if pid not in self._codes]:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    self._codes[pid] = os.waitstatus_to_exitcode(status)
                    if self._codes[pid] not in (0, 75):
                        self.send(signal.SIGKILL)
            took = time.monotonic() - self.began
            if len(self._codes) == len(self.pids):
                return Ended(self._codes[self.pids[0]], took, self.log.read_text("utf-8", "replace"))
            if seconds is not None and took > seconds:
                return None
            time.sleep(0.002)

    def kill(self, after: float) -> Ended:
        """Kill them after so many seconds, unless they have ended before."""
        if (ended := self.wait(after)) is None:
            self.send(signal.SIGKILL)
            ended = self.wait()
        assert ended is not None
        return ended

    def _fork(self, rank: int, port: str) -> int:
        if pid := os.fork():
            return pid
        code = 1
        try:
            descriptor = os.open(self.log, os.O_WRONLY | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            os.environ |= self.variables
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):  # the suite itself may run under nohup
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if self.num_processes > 1:
                ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self.num_processes, "MASTER_PORT": port}
                os.environ |= {name: str(value) for name, value in ranks.items()} | {"MASTER_ADDR": "127.0.0.1"}
            if self.prepare is not None:
                self.prepare(rank)
            torch.set_num_threads(1)
            sys.argv = ["freeflow", *map(str, self.arguments)]
            main()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def note_modules(file: Path) -> Callable[[int], None]:
    """To be called in a process to come: it notes all that it has imported, as it ends."""
    return lambda rank: atexit.register(lambda: file.write_text("\n".join(sys.modules)) and None)


def import_noted(file: Path) -> None:
    """Import it here, so that forked processes need not: ten times less work for a short run."""
    for name in file.read_text().split():
        if name not in sys.modules:
            with contextlib.suppress(Exception):  # of modules that only look like some
                importlib.import_module(name)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
