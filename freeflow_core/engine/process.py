"""This process: its device, precision and memory, the others of its run, and how it is stopped."""

import atexit
import gc
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import FrameType, TracebackType
from typing import Any, Protocol, Self, TypeVar, final

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from freeflow_core.config import RuntimeConfig
from freeflow_core.errors import ConfigError, FreeflowError

_T = TypeVar("_T")


def choose_device(runtime: RuntimeConfig) -> torch.device:
    """The device asked for, or the best there is. Raises :class:`ConfigError` when it is not available."""
    wanted = planned_device_type(runtime)
    if not is_available(wanted):
        raise ConfigError(
            f"runtime.device={wanted} is not available to this torch ({torch.__version__}). "
            f"Available: {', '.join(name for name in ('cpu', 'cuda', 'mps') if is_available(name))}."
        )
    return torch.device(wanted)


def planned_device_type(runtime: RuntimeConfig) -> str:
    """``cpu``, ``cuda`` or ``mps``: the one asked for, which need not be there, or the best there is.

    Raises :class:`ConfigError` for a precision it does not have.
    """
    wanted = runtime.device
    if wanted == "auto":
        wanted = "cuda" if is_available("cuda") else "mps" if is_available("mps") else "cpu"
    if wanted == "mps" and runtime.precision == "float64":
        raise ConfigError("runtime.precision=float64 does not exist on mps. Use runtime.device=cpu.")
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
    torch.use_deterministic_algorithms(runtime.deterministic, warn_only=True)
    # Deterministic mode also fills every `torch.empty`: a debugging aid that costs 3 % of a small network's step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # no stub for it
    torch.backends.cudnn.benchmark = not runtime.deterministic
    accelerator = Accelerator(cpu=device.type == "cpu")
    if accelerator.num_processes > 1:
        atexit.unregister(_leave_processes)
        atexit.register(_leave_processes)
    return accelerator


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
    """What ``work`` returns on the main process, on every process; a ``FreeflowError`` of it likewise."""
    found: list[Any] = [None]
    if process.is_main_process:
        try:
            found = [work()]
        except FreeflowError as error:
            found = [error]
    if process.num_processes > 1:
        broadcast_object_list(found)
    if isinstance(found[0], FreeflowError):
        raise found[0]
    result: _T = found[0]
    return result


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """bf16 autocast when asked for, nothing otherwise; may be entered again and again."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def memory_in_use(device: torch.device) -> int:
    """Bytes held now: allocated on the GPU, or resident on the host."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


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


@final
class StopRequest:
    """Ctrl-C and SIGTERM end a run after the step in hand, with a checkpoint; a second one ends it at once.

    A context in which the first interrupt only sets ``requested``. Outside the main thread it does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
