"""``freeflow doctor``: what is installed, what works, and what to do about the rest."""

import importlib.metadata
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path

import psutil
import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from freeflow_core.engine.build import INTERFACES
from freeflow_core.errors import FreeflowError
from freeflow_core.plugin import KINDS, Component, Manager, Registry
from freeflow_core.plugin.manager import api_version
from freeflow_core.tracking import redact
from freeflow_core.types import Check, Status
from freeflow_core.weights import cache_folder, cache_usage, data_size, offline_variable


def diagnose(manager: Manager | None = None) -> list[Check]:
    """All checks; each stands for itself, and one that fails in a way of its own is a finding like others."""
    parts: dict[str, Callable[[], Iterable[Check]]] = {
        "versions": check_versions,
        "device": check_hardware,
        "attention": check_attention,
        "distributed launch": check_launch,
        "storage": check_storage,
        "MLflow": lambda: [check_tracking()],
        "plugins": lambda: check_plugins(manager or Manager.load()),
    }
    found: list[Check] = []
    for name, part in parts.items():
        try:
            found.extend(part())
        except Exception as error:  # the other checks still help
            found.append(Check(name, "error", f"could not be looked at: {type(error).__name__}: {_one_line(error)}"))
    return found


def _one_line(error: object) -> str:
    return " ".join(str(error).split())


# --- plugins: whether everything that they offer can be imported


def check_plugins(manager: Manager) -> Iterator[Check]:
    """The API's version, each plugin, and each component that cannot be used."""
    registry = Registry(manager)  # first: a hook that fails is found here
    broken: list[Check] = []
    sound: Counter[str] = Counter()
    for kind in KINDS:
        for name, component in registry.components(kind).items():
            owner = registry.origin(kind, name).name
            if reason := _why_broken(kind, component):
                broken.append(Check(f"{kind} {name}", "error", f"of plugin {owner}: {reason}"))
            else:
                sound[owner] += 1
    yield Check("plugin API", "ok", f"version {api_version()}")
    for text in (*manager.warnings, *registry.warnings):
        yield Check("plugins", "warning", text)
    for plugin in manager.plugins:
        number = sound[plugin.name]
        offers = "its component can be imported" if number == 1 else f"its {number} components can be imported"
        what = f"{plugin.distribution} {plugin.version}".strip()
        status: Status = "error" if plugin in manager.problems else "warning" if plugin.problem else "ok"
        yield Check(f"plugin {plugin.name}", status, plugin.problem or f"{what}, for plugin API {plugin.api}; {offers}")
    yield from broken


def _why_broken(kind: str, component: Component) -> str | None:
    try:
        component.load_config_class()
        target = component.load_target()
    except FreeflowError as error:
        return str(error)
    except Exception as error:  # a module may fail in any way
        return f"{component.target} fails to import: {type(error).__name__}: {_one_line(error)}"
    expected = INTERFACES[kind]
    if not (isinstance(target, type) and issubclass(target, expected)):
        return f"{component.target} is no freeflow_core.interfaces.{expected.__name__}"
    return None


# --- versions: what is installed, against what this package needs

OWN = "freeflow-distill"
SHOWN = ("torch", "torchvision", "accelerate", "numpy", "mlflow", "clean-fid", "torchdiffeq", "safetensors", "pydantic")
OPTIONAL = {"diffusers": "the codec sd-vae and the teacher diffusers-transformer; pip install 'freeflow-distill[vae]'"}
DEPRECATED = {
    "PYTORCH_CUDA_ALLOC_CONF": "PYTORCH_ALLOC_CONF, from torch 2.9 on",
    "NCCL_ASYNC_ERROR_HANDLING": "TORCH_NCCL_ASYNC_ERROR_HANDLING",
    "HUGGINGFACE_HUB_CACHE": "HF_HUB_CACHE",
    "TRANSFORMERS_CACHE": "HF_HOME",
}
"""Environment variables that still work somewhere, and what replaced them."""


def check_versions(environment: Mapping[str, str] = os.environ) -> Iterator[Check]:
    """Python, the packages that matter, and variables that have another name by now."""
    needed: dict[str, Requirement] = {}
    with suppress(importlib.metadata.PackageNotFoundError):
        written = map(Requirement, importlib.metadata.requires(OWN) or [])
        needed = {canonicalize_name(item.name): item for item in written if item.marker is None}  # without extras
    yield Check("python", "ok", f"{platform.python_version()} on {platform.platform()}")
    for name in SHOWN:
        yield check_package(name, needed.get(canonicalize_name(name)))
    for name, purpose in OPTIONAL.items():
        yield check_package(name, None, purpose)
    for name in DEPRECATED:
        if name in environment:
            yield Check(f"variable {name}", "warning", f"deprecated; set {DEPRECATED[name]} instead")


def check_package(name: str, needed: Requirement | None, purpose: str = "") -> Check:
    """One package; ``purpose`` says what an optional one is for."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        if purpose:
            return Check(name, "ok", f"not installed; needed for {purpose}")
        return Check(name, "error", f"not installed; run `pip install {OWN}` again")
    if needed is not None and not needed.specifier.contains(version, prereleases=True):
        told = f"{version}, but {OWN} is made for {needed.specifier}; run `pip install '{needed}'`"
        return Check(name, "warning", told)
    return Check(name, "ok", version)


# --- launch: whether as many processes work together as were asked for

_LAUNCHERS = {
    "SLURM_NTASKS": "SLURM",
    "OMPI_COMM_WORLD_SIZE": "Open MPI",
    "PMI_SIZE": "MPI",
    "MV2_COMM_WORLD_SIZE": "MVAPICH",
}
"""What a launcher that is not torch's says of the number of processes."""
_TORCHRUN = "`torchrun --nproc_per_node N -m freeflow_cli distill ...`"
_REMEDY = f"start it with {_TORCHRUN}, or by `accelerate launch` on GPUs"


def check_launch(environment: Mapping[str, str] = os.environ) -> Iterator[Check]:
    """Processes that joined against those asked for, and what accelerate's own configuration says."""
    joined, configured = _number(environment, "WORLD_SIZE") or 1, configured_processes(environment)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        joined = torch.distributed.get_world_size()
    problem = _launch_problem(environment, joined, configured)
    yield Check("distributed launch", "warning" if problem else "ok", problem or _processes(joined))
    here, gpus = _number(environment, "LOCAL_WORLD_SIZE") or 1, torch.cuda.device_count()
    if gpus and here > gpus:
        detail = f"{here} processes on a machine with {gpus} GPU(s); start at most {gpus} here, or set "
        yield Check("processes and GPUs", "error", f"{detail}runtime.device=cpu")
    if configured is not None:
        more = f", which `accelerate launch` alone reads; this process is one of {joined}"
        told = f"asks for {_processes(configured)}{more if configured > joined else ''}"
        yield Check("accelerate configuration", "warning" if configured > joined > 1 else "ok", told)


def _launch_problem(environment: Mapping[str, str], joined: int, configured: int | None) -> str | None:
    for variable, launcher in _LAUNCHERS.items():
        asked = _number(environment, variable) or 1
        # A shell on an allocation sees SLURM_NTASKS too; only srun sets a process number.
        if asked > joined and (variable != "SLURM_NTASKS" or "SLURM_PROCID" in environment):
            alone = f"each would run alone, as one of {joined}: the same run {asked} times"
            return f"{launcher} started {asked} processes ({variable}), but {alone}. {_REMEDY}"
    if "ACCELERATE_MIXED_PRECISION" in environment and "WORLD_SIZE" not in environment:
        told = f"; its configuration asks for {configured}" if configured and configured > 1 else ""
        return f"`accelerate launch` started one process{told}. On CPUs it ignores --num_processes; use {_TORCHRUN}."
    if joined > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
        return f"WORLD_SIZE={joined} without MASTER_ADDR and MASTER_PORT: processes cannot find each other. {_REMEDY}"
    return None


def configured_processes(environment: Mapping[str, str]) -> int | None:
    """``num_processes`` of accelerate's default configuration; None where there is none that can be read."""
    cache = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    file = Path(environment.get("HF_HOME") or cache / "huggingface") / "accelerate" / "default_config.yaml"
    with suppress(OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError):
        number = yaml.safe_load(file.read_text("utf-8")).get("num_processes")
        return number if isinstance(number, int) else None
    return None


def _number(environment: Mapping[str, str], variable: str) -> int | None:
    text = environment.get(variable, "")
    return int(text) if text.isdecimal() else None


def _processes(number: int) -> str:
    return "1 process" if number == 1 else f"{number} processes"


# --- hardware: the device, what it computes in, and which attention kernels and derivatives work on it

_TF32_CAPABILITY = (8, 0)
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


def check_hardware() -> Iterator[Check]:
    """The device that runs would choose, its memory, and its precisions: fp16 serves codecs and foreign networks."""
    device, memory, driver = "cpu", f"{psutil.virtual_memory().total / 2**30:.0f} GiB", driver_version()
    if torch.cuda.is_available():
        device = "cuda"
        yield from map(_gpu, range(torch.cuda.device_count()))
        yield Check("CUDA", "ok", f"torch is built for {torch.version.cuda}, driver {driver or 'unknown'}")
    elif torch.backends.mps.is_available():
        device = "mps"
        yield Check("device", "ok", f"mps, {memory} of memory shared with the host")
    else:
        detail = f"cpu with {torch.get_num_threads()} of {os.cpu_count()} threads, {memory} of memory"
        reason = f"torch is built for CUDA {torch.version.cuda} and cannot use it; update the driver"
        if torch.version.cuda is None:
            reason = "this torch is built without CUDA; install a CUDA build"
        told = f"there is an NVIDIA GPU (driver {driver}), but {reason}" if driver else "large teachers need a GPU"
        yield Check("device", "warning" if driver else "ok", f"{detail}; {told}")
    yield _precision(device, "bf16", torch.bfloat16)
    yield _precision(device, "fp16", torch.float16)
    if device == "cuda" and torch.cuda.get_device_capability() < _TF32_CAPABILITY:
        yield Check("tf32", "ok", "this GPU has none; float32 is float32")
    elif device == "cuda":
        yield Check("tf32", "ok", "supported; runtime.matmul_precision=high uses it for products of float32 numbers")


def _gpu(index: int) -> Check:
    free, total = torch.cuda.mem_get_info(index)
    major, minor = torch.cuda.get_device_capability(index)
    memory = f"{total / 2**30:.0f} GiB, {free / 2**30:.0f} free"
    taken = "; another process holds most of its memory" if free < 0.1 * total else ""
    detail = f"{torch.cuda.get_device_name(index)}, {memory}, compute capability {major}.{minor}{taken}"
    return Check(f"device cuda:{index}", "warning" if taken else "ok", detail)


def driver_version() -> str | None:
    """Of the NVIDIA driver, as its own tool tells; None where there is none."""
    if (tool := shutil.which("nvidia-smi")) is None:
        return None
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0].strip() or None


def _precision(device: str, name: str, dtype: torch.dtype) -> Check:
    try:
        with torch.autocast(device, dtype=dtype):
            product = torch.ones(8, 8, device=device) @ torch.ones(8, 8, device=device)
        if product.dtype is not dtype:
            return Check(name, "warning", f"autocast on {device} falls back to {product.dtype}")
    except (RuntimeError, TypeError) as error:
        return Check(name, "warning", f"not usable on {device}: {_one_line(error)[:160]}")
    if device == "cuda" and dtype is torch.bfloat16 and torch.cuda.get_device_capability() < _TF32_CAPABILITY:
        return Check(name, "warning", "emulated on this GPU, and slow; use runtime.precision=float32")
    return Check(name, "ok", f"usable on {device}")


def check_attention() -> Iterator[Check]:
    """Kernels by precision, then forward mode by kernel, then what needs neither."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    usable = {
        name: [kernel for kernel in KERNELS if _attends(kernel, device, dtype)]
        for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16))
    }
    detail = "; ".join(f"{name}: {_listed(kernels)}" for name, kernels in usable.items())
    yield Check("attention kernels", "ok" if usable["float32"] else "error", f"{detail} (on {device})")
    forward = [kernel for kernel in usable["float32"] if _attends(kernel, device, torch.float32, forward_mode=True)]
    others = [kernel for kernel in usable["float32"] if kernel not in forward]
    rest = f"; {_listed(others)} cannot, and {'is' if len(others) == 1 else 'are'} left out of that pass"
    exact = f"exact, with {_listed(forward)} attention{rest if others else ''}"
    unusable = "not usable here, even with math attention; use derivative=central"
    works = "math" in forward
    yield Check("derivative=forward-mode", "ok" if works else "warning", exact if works else unusable)
    yield Check("derivative=central, one-sided", "ok", "any kernel; central in float32, one-sided needs a float32 run")


def _attends(kernel: str, device: str, dtype: torch.dtype, *, forward_mode: bool = False) -> bool:
    q = torch.randn(1, 2, 8, 32, device=device, dtype=dtype)

    def attention(x: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(x, q, q)

    try:
        with sdpa_kernel(KERNELS[kernel]):
            torch.func.jvp(attention, (q,), (q,)) if forward_mode else attention(q)
    except (RuntimeError, NotImplementedError):
        return False
    return True


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


# --- stores: whether runs and published weights can be written, and the MLflow store reached that runs would write to

LITTLE = 2 * 2**30
"""Bytes free below which a run with checkpoints of a large network fills the disk."""
_TRACKING = "MLFLOW_TRACKING_URI"
_SECONDS = 3
_SQLITE = re.compile(r"^sqlite(\+\w+)?:///")


def check_storage() -> Iterator[Check]:
    """The folder that runs go to, and the cache of published weights. Makes no folder."""
    runs, cache = Path.cwd() / "runs", cache_folder()
    num_files, num_bytes = cache_usage(cache)
    offline = f", offline by {offline_variable()}" if offline_variable() else ""
    held = f"{cache} holds {num_files} file(s), {data_size(num_bytes)}{offline}"
    yield _writable("runs folder", runs, str(runs), "error", "use --output elsewhere")
    yield _writable("weights cache", cache, held, "warning", "set FREEFLOW_CACHE to fetch more")


def _writable(name: str, folder: Path, shown: str, otherwise: Status, remedy: str) -> Check:
    there = _existing(folder)
    try:
        with tempfile.NamedTemporaryFile(dir=there):
            free = shutil.disk_usage(there).free
    except OSError as error:
        return Check(name, otherwise, f"{shown}; not writable ({error}); {remedy}")
    if free < LITTLE:
        return Check(name, "warning", f"{shown}; only {data_size(free)} free, which large networks may fill; {remedy}")
    return Check(name, "ok", f"{shown}; writable, {data_size(free)} free")


def _existing(folder: Path) -> Path:
    return next((path for path in (folder, *folder.parents) if path.is_dir()), folder)


def check_tracking(environment: Mapping[str, str] = os.environ) -> Check:
    """The MLflow store that a run would write to: asked when it is a server, read when it is a database."""
    uri = environment.get(_TRACKING, "").strip()
    if uri.startswith(("http://", "https://")):
        sound, told = _ask_server(uri)
    elif match := _SQLITE.match(uri):
        sound, told = _read_database(Path(uri[match.end() :].partition("?")[0]))
    elif uri:
        sound, told = True, f"{redact(uri)}; this kind of address is left to MLflow"
    else:
        sound, told = _read_database(Path.cwd() / "runs" / "mlflow.db")
        told = f"no {_TRACKING}; runs go to {told}"
    kept = "; runs go on, and keep their metrics for `freeflow mlflow-sync`"
    return Check("MLflow", "ok" if sound else "warning", told if sound else told + kept)


def _ask_server(uri: str) -> tuple[bool, str]:
    shown = redact(uri)
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=_SECONDS) as answer:
            return True, f"{shown} answers ({answer.status})"
    except urllib.error.HTTPError as error:
        if error.code in (401, 403, 404):  # a server is there, with a door or a path of its own
            return True, f"{shown} answers ({error.code}); whether it lets runs in was not tried"
        return False, f"{shown} answers with an error ({error.code})"
    except (OSError, ValueError) as error:
        reason = redact(str(getattr(error, "reason", error)))
        return False, f"{shown} cannot be reached within {_SECONDS} s ({reason})"


def _read_database(file: Path) -> tuple[bool, str]:
    """Opened read-only, so that looking makes nothing."""
    if not file.exists():
        folder = _existing(file.absolute().parent)
        if not os.access(folder, os.W_OK):
            return False, f"{file}, but {folder} cannot be written"
        return True, f"{file}, which the first run makes"
    try:
        address = f"file:{urllib.parse.quote(str(file.absolute()))}?mode=ro"
        with closing(sqlite3.connect(address, uri=True, timeout=_SECONDS)) as connection:
            connection.execute("select count(*) from sqlite_master").fetchone()
    except sqlite3.Error as error:
        return False, f"{file} is no database that can be read ({error})"
    writable = os.access(file, os.W_OK)
    return writable, str(file) if writable else f"{file} can be read, not written"
