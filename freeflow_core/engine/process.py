"""This process: its device, precision and memory, and the others of its run."""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import timedelta
from io import BytesIO
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, final

import psutil
import torch

from freeflow_core.config import RuntimeConfig
from freeflow_core.engine.interruption import StopRequest
from freeflow_core.errors import ConfigError, FreeflowError
from freeflow_core.plugin.culprit import described

if TYPE_CHECKING:
    from accelerate import Accelerator

_T = TypeVar("_T")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h."""
_MEETING = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What launchers set beside ``WORLD_SIZE``."""
_EXCHANGE = re.compile(r"gloo|NCCL|[Cc]onnection (closed|reset|refused)|[Bb]roken pipe")
"""What torch says of an exchange between processes that failed."""


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
    """Join the launched processes (one when there was no launcher) and fix thread count and determinism.

    Raises:
        ConfigError: a device that is not there, or an environment that names other processes and not how to meet them.
        FreeflowError: the others have not come within ``runtime.timeout_seconds``.
    """
    from accelerate import Accelerator  # here and below: a dry run has no use for it, and it takes long to load
    from accelerate.utils import InitProcessGroupKwargs

    device = choose_device(runtime)
    _check_launch()
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
    joining = InitProcessGroupKwargs(timeout=patience(runtime))
    try:
        accelerator = Accelerator(cpu=device.type == "cpu", kwargs_handlers=[joining])
    except RuntimeError as error:
        if not is_failed_exchange(error):
            raise
        rank, place = (os.environ.get(name, "") for name in ("RANK", "MASTER_ADDR"))
        raise FreeflowError(
            f"Process {rank} expected {launched_processes()} processes to meet at {place}:"
            f"{os.environ.get('MASTER_PORT', '')}, and they did not: {described(error).rstrip('.')}. Start all of them "
            f"within the {runtime.timeout_seconds:g} s of runtime.timeout_seconds, and see in their output why one "
            "ended; without a launcher, leave WORLD_SIZE out."
        ) from error
    if accelerator.num_processes > 1:
        atexit.unregister(_leave_processes)
        atexit.register(_leave_processes)
    return accelerator


def launched_processes() -> int:
    """How many processes the launcher started, of torchrun or its like; 1 without one. Known before they have met.

    Raises ``ConfigError``.
    """
    number = os.environ.get("WORLD_SIZE", "1")
    if not number.isdecimal() or int(number) < 1:
        raise ConfigError(
            f"The environment says WORLD_SIZE={number}: expected how many processes there are. Start them by torchrun, "
            "which sets it; for one process alone, unset it."
        )
    return int(number)


def _check_launch() -> None:
    """Raise :class:`ConfigError` for a ``WORLD_SIZE`` without what processes need to meet."""
    if launched_processes() > 1 and (missing := [name for name in _MEETING if name not in os.environ]):
        raise ConfigError(
            f"The environment says WORLD_SIZE={os.environ['WORLD_SIZE']}, so this is one of several processes, but "
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set. Start them by torchrun "
            "--nproc_per_node N -m freeflow_cli ..., which sets them all; for one process alone, unset WORLD_SIZE."
        )


def patience(runtime: RuntimeConfig) -> timedelta:
    """How long this process waits for the others: to be given to every group of processes, for torch's own differ."""
    return timedelta(seconds=runtime.timeout_seconds)


def gloo_group(runtime: RuntimeConfig) -> torch.distributed.ProcessGroup:
    """All processes in one more group, over gloo, so that no device waits. To be made by all alike."""
    torch.distributed.barrier()  # fails when one has died, for which making a group waits as if it were late
    return torch.distributed.new_group(backend="gloo", timeout=patience(runtime))


def is_failed_exchange(error: RuntimeError) -> bool:
    """Whether it comes from an exchange between processes; gloo's errors have no type of their own."""
    return isinstance(error, torch.distributed.DistError) or _EXCHANGE.search(str(error)) is not None


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
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(found)
    if isinstance(found[0], (FreeflowError, OSError)):
        raise found[0]
    result: _T = found[0]
    return result


def from_each(process: Process, values: list[_T]) -> list[_T]:
    """The values of all processes, one after the other, on every process."""
    if process.num_processes == 1:
        return values
    from accelerate.utils import gather_object

    return list(gather_object(values))


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

    def __init__(self, process: Accelerator | None = None, stop: StopRequest | None = None) -> None:
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
