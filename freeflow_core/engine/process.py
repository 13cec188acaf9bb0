"""This process: its device, precision and memory, the others of its run, and how it is stopped."""

import atexit
import ctypes
import gc
import importlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from io import BytesIO
from itertools import islice
from types import FrameType, TracebackType
from typing import Any, Protocol, Self, TypeVar, final

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object

from freeflow_core.config import RuntimeConfig
from freeflow_core.errors import ConfigError, FreeflowError
from freeflow_core.plugin.culprit import described

_T = TypeVar("_T")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h."""


def choose_device(runtime: RuntimeConfig) -> torch.device:
    """The device asked for, or the best there is. Raises :class:`ConfigError` when it is not available."""
    wanted = planned_device_type(runtime)
    if not is_available(wanted):
        raise ConfigError(
            f"runtime.device={wanted} is not available to this torch ({torch.__version__}). "
            f"Available: {', '.join(name for name in ('cpu', 'cuda', 'mps') if is_available(name))}."
        )
    if wanted == "cpu":
        _keep_freed_memory()  # of sampling as of training
    return torch.device(wanted)


def planned_device_type(runtime: RuntimeConfig) -> str:
    """``cpu``, ``cuda`` or ``mps``: the one asked for, which need not be there, or the best there is.

    Raises :class:`ConfigError` for a precision it does not have, or memory of the host's that is its own.
    """
    wanted = runtime.device
    if wanted == "auto":
        wanted = "cuda" if is_available("cuda") else "mps" if is_available("mps") else "cpu"
    if wanted == "mps" and runtime.precision == "float64":
        raise ConfigError("runtime.precision=float64 does not exist on mps. Use runtime.device=cpu.")
    if runtime.offload_optimizer and wanted != "cuda":
        raise ConfigError(
            f"runtime.offload_optimizer=true moves moments from a GPU to the host's memory, where the device {wanted} "
            "has them anyway. Leave it out, or save memory by training.optimizer.moments=8bit."
        )
    return wanted


def is_available(device_type: str) -> bool:
    """Whether this torch can use a device of that type here."""
    if device_type == "cuda":
        return torch.cuda.is_available()
    return device_type == "cpu" or torch.backends.mps.is_available()


def free_memory(device_type: str) -> int | None:
    """Bytes that this process could still take; None when the device is not there to be asked."""
    if not is_available(device_type):
        return None
    if device_type == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)


def start_accelerator(runtime: RuntimeConfig) -> Accelerator:
    """Join the launched processes (one when there was no launcher) and fix thread count and determinism."""
    device = choose_device(runtime)
    if runtime.threads is not None:
        torch.set_num_threads(runtime.threads)
    if runtime.compile:
        torch.use_deterministic_algorithms(runtime.deterministic, warn_only=True)
    else:  # the same without inductor, whose import takes longer than torch's own
        torch.set_deterministic_debug_mode("warn" if runtime.deterministic else "default")
    # Deterministic mode also fills every `torch.empty`: a debugging aid that costs 3 % of a small network's step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # no stub for it
    torch.backends.cudnn.benchmark = not runtime.deterministic
    if launched_processes() > 1:
        # Its functions' defaults are the group of the time of their import, which they would keep from ending.
        importlib.import_module("torch.distributed.nn.functional")
    patience = InitProcessGroupKwargs(timeout=timedelta(seconds=runtime.timeout_seconds))
    accelerator = Accelerator(cpu=device.type == "cpu", kwargs_handlers=[patience])
    if accelerator.num_processes > 1:
        atexit.unregister(_leave_processes)
        atexit.register(_leave_processes)
    return accelerator


def launched_processes() -> int:
    """How many processes the launcher started, of torchrun or its like; 1 without one. Known before they have met."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _keep_freed_memory() -> None:
    """Have the C library keep what is freed for what comes next: to get it anew, page by page, is an eighth of a step.

    Of glibc alone (mallopt(3)), unless the environment sets it; elsewhere nothing happens.
    """
    if not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        with suppress(OSError, AttributeError):
            library = ctypes.CDLL(None)
            library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
            library.mallopt(_MMAP_THRESHOLD, 2**25)  # as far as it goes


def processes_per_copy(runtime: RuntimeConfig, num_processes: int) -> int:
    """Among how many of the processes each network is divided; 1: each process has all of it.

    Raises :class:`ConfigError` when the processes cannot be grouped so.
    """
    if runtime.sharding == "none" or num_processes == 1:
        return 1
    if runtime.sharding == "full":
        return num_processes
    sharing = runtime.shard_size or int(os.environ.get("LOCAL_WORLD_SIZE", num_processes))
    if num_processes % sharing:
        raise ConfigError(
            f"runtime.sharding=hybrid divides each network among {sharing} processes, but {num_processes} cannot be "
            f"grouped so. Set runtime.shard_size to a divisor of {num_processes}, or runtime.sharding=full."
        )
    return sharing


def _leave_processes() -> None:
    """End gloo's threads while the interpreter still stands: one left for the C++ teardown aborts the process.

    NCCL's group is left to torch, for its destruction would wait for what a failed process never finishes.
    """
    gc.collect()  # what wraps networks for many processes holds the group, and with it the threads
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
        torch.distributed.destroy_process_group()


class Process(Protocol):
    """One of the processes of a run, such as an ``Accelerator``."""

    @property
    def num_processes(self) -> int: ...

    @property
    def is_main_process(self) -> bool: ...


def from_main(process: Process, work: Callable[[], _T]) -> _T:
    """What ``work`` returns on the main process, on every process; a ``FreeflowError`` or ``OSError`` likewise."""
    found: list[Any] = [None]
    if process.is_main_process:
        try:
            found = [work()]
        except (FreeflowError, OSError) as error:
            found = [error]
    if process.num_processes > 1:
        broadcast_object_list(found)
    if isinstance(found[0], (FreeflowError, OSError)):
        raise found[0]
    result: _T = found[0]
    return result


def from_each(process: Process, values: list[_T]) -> list[_T]:
    """The values of all processes, one after the other, on every process."""
    return list(gather_object(values)) if process.num_processes > 1 else values


def on_each(process: Process, work: Callable[[], None]) -> None:
    """Do ``work`` on every process; a ``FreeflowError`` of any is raised on all, so that none waits for another."""
    failed: list[FreeflowError | None] = [None]
    try:
        work()
    except FreeflowError as error:
        failed = [error]
    for failure in from_each(process, failed):
        if failure is not None:
            raise failure


@final
class Crew:
    """Processes that share out pieces of work of which each needs every result; one alone does them all.

    Args:
        process: one of them, as its siblings are; None: alone.
        stop: a signal to any of them ends the pieces in hand, and is ``KeyboardInterrupt`` in all of them. Signals at
            other moments only set ``requested``, so that no process leaves while another waits for it.
    """

    def __init__(self, process: Accelerator | None = None, stop: "StopRequest | None" = None) -> None:
        self._process, self._stop = process, stop
        self.num_processes = 1 if process is None else process.num_processes
        self.is_main_process = process is None or process.is_main_process

    def shared(self, pieces: Iterable[Callable[[], _T]]) -> Iterator[_T]:
        """What the pieces give, in their order, on every process. To be called, and gone through, by all alike.

        Tensors come back on the kind of device that they were made on.

        Raises what a piece raises, in the process that did it; in the others a ``FreeflowError``.
        """
        if self._process is None or self.num_processes == 1:
            for piece in pieces:
                yield piece()
            return
        waiting, rank = iter(pieces), self._process.process_index
        while turn := list(islice(waiting, self.num_processes)):
            result, error = self._attempt(turn[rank]) if rank < len(turn) else (b"", None)
            told = error
            if error is not None and not isinstance(error, FreeflowError):
                told = FreeflowError(f"Another process of the run failed: {described(error)}")
            found = from_each(self._process, [(result, told, isinstance(error, KeyboardInterrupt))])
            if any(stopped for _, _, stopped in found):
                raise KeyboardInterrupt
            if error is not None:
                raise error
            for _, failure, _ in found:
                if failure is not None:
                    raise failure
            for content, _, _ in found[: len(turn)]:
                yield torch.load(BytesIO(content), map_location=self._here, weights_only=False)

    def from_main(self, work: Callable[[], _T]) -> _T:
        """See :func:`from_main`."""
        return from_main(self, work)

    def _attempt(self, piece: Callable[[], object]) -> tuple[bytes, BaseException | None]:
        """What a piece gives, in bytes, or what it raised."""
        content = BytesIO()
        try:
            with nullcontext() if self._stop is None else self._stop.at_once():
                torch.save(piece(), content)
        except (Exception, KeyboardInterrupt) as error:
            return b"", error
        return content.getvalue(), None

    def _here(self, storage: Any, location: str) -> Any:
        """A storage on this process's device, where it was on another's."""
        return storage if location == "cpu" or self._process is None else storage.to(self._process.device)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """bf16 autocast when asked for, nothing otherwise; may be entered again and again."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def memory_in_use(device: torch.device) -> int:
    """Bytes held now: allocated on the GPU, or resident on the host."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def machine_usage(device: torch.device) -> dict[str, float]:
    """How busy the machine is, in per cent, by the names that MLflow gives its own system metrics.

    The processors' is the mean since the last call. A GPU's load is there where its vendor's library is (``pip install
    nvidia-ml-py``).
    """
    found = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_percentage": psutil.virtual_memory().percent,
    }
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        found["system/gpu_memory_usage_percentage"] = 100 * (1 - free / total)
        with suppress(Exception):  # the library's own errors have no common kind; a slice of a GPU (MIG) has no load
            found["system/gpu_utilization_percentage"] = torch.cuda.utilization(device)
    return found


def peak_memory(device: torch.device) -> int:
    """Largest number of bytes held so far by this process, on the GPU or on the host."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows has no resource module; its psutil reports the peak itself
        return int(getattr(psutil.Process().memory_info(), "peak_wset", memory_in_use(device)))
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


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

    Asked every ``interval`` seconds or so, counted in steps, for clocks differ; over gloo, so that no device waits.
    """

    def __init__(self, process: Process, interval: float = 0.5) -> None:
        self._group = torch.distributed.new_group(backend="gloo") if process.num_processes > 1 else None
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
