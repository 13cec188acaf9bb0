"""`freeflow doctor`: what is installed, what works, and what to do about the rest."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from freeflow_core.errors import FreeflowError
from freeflow_core.plugin import KINDS, Manager, Registry
from freeflow_core.weights import cache_folder, cache_usage, data_size, offline_variable

_PACKAGES = ("torch", "torchvision", "accelerate", "mlflow", "clean-fid", "torchdiffeq", "safetensors", "pydantic")


@dataclass(frozen=True)
class Check:
    """One finding."""

    name: str
    status: Literal["ok", "warning", "error"]
    detail: str


def diagnose(manager: Manager) -> list[Check]:
    """All checks; each stands for itself, and none stops the others."""
    checks = [
        Check("python", "ok", f"{platform.python_version()} on {platform.platform()}"),
        *(_package(name) for name in _PACKAGES),
        _device(),
        _precision(),
        *_attention(),
        _launch(),
        _writable(),
        _weights_cache(),
    ]
    return checks + _plugins(manager)


def _package(name: str) -> Check:
    try:
        return Check(name, "ok", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(name, "error", "not installed; run `pip install freeflow-distill` again")


def _device() -> Check:
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Check("device", "ok", f"cuda: {names}")
    if torch.backends.mps.is_available():
        return Check("device", "ok", "mps")
    return Check("device", "ok", f"cpu with {torch.get_num_threads()} threads; large teachers need a GPU")


def _precision() -> Check:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        with torch.autocast(device, dtype=torch.bfloat16):
            torch.ones(8, 8, device=device) @ torch.ones(8, 8, device=device)
    except RuntimeError as error:
        return Check("bf16", "warning", f"not usable on {device}: {error}")
    return Check("bf16", "ok", f"usable on {device}")


def _attention() -> list[Check]:
    """Which attention kernels run, and which derivative methods follow from that."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    q = torch.randn(1, 2, 8, 32, device=device)
    usable = []
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH):
        try:
            with sdpa_kernel(backend):
                functional.scaled_dot_product_attention(q, q, q)
            usable.append(backend.name.lower())
        except RuntimeError:
            continue
    try:
        with sdpa_kernel(SDPBackend.MATH):
            torch.func.jvp(lambda x: functional.scaled_dot_product_attention(x, q, q), (q,), (q,))
        forward = Check("derivative=forward-mode", "ok", "exact, on math attention")
    except RuntimeError as error:
        forward = Check("derivative=forward-mode", "warning", f"not usable here: {error}")
    return [
        Check("attention kernels", "ok", f"{', '.join(usable)} (float32 on {device})"),
        forward,
        Check("derivative=central, one-sided", "ok", "any kernel, float32 networks"),
    ]


def _launch() -> Check:
    wanted = int(os.environ.get("WORLD_SIZE", os.environ.get("ACCELERATE_NUM_PROCESSES", "1")) or 1)
    joined = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "WORLD_SIZE" not in os.environ:
        return Check(
            "distributed launch",
            "warning",
            "`accelerate launch` started one process. On CPUs it ignores --num_processes; "
            "use `torchrun --nproc_per_node N -m freeflow_cli distill ...`.",
        )
    return Check("distributed launch", "ok", f"{max(wanted, joined)} process(es)")


def _writable() -> Check:
    try:
        with tempfile.NamedTemporaryFile(dir=Path.cwd()):
            return Check("current folder", "ok", f"{Path.cwd()} is writable")
    except OSError as error:
        return Check("current folder", "error", f"{Path.cwd()} is not writable ({error}); use --output elsewhere")


def _weights_cache() -> Check:
    """Where published weights go, what lies there, and whether more can be written. Makes no folder."""
    folder = cache_folder()
    num_files, num_bytes = cache_usage(folder)
    there = f"{folder} holds {num_files} file(s), {data_size(num_bytes)}"
    existing = next((path for path in (folder, *folder.parents) if path.is_dir()), folder)
    try:
        with tempfile.NamedTemporaryFile(dir=existing):
            free = data_size(shutil.disk_usage(existing).free)
    except OSError as error:
        return Check("weights cache", "warning", f"{there}; not writable ({error}); set FREEFLOW_CACHE to fetch more")
    offline = f"; offline by {offline_variable()}" if offline_variable() else ""
    return Check("weights cache", "ok", f"{there}; writable, {free} free{offline}")


def _plugins(manager: Manager) -> list[Check]:
    checks = [
        Check(
            f"plugin {p.name}",
            "error" if p in manager.problems else "warning" if p.problem else "ok",
            p.problem or f"{p.distribution} {p.version}".strip(),
        )
        for p in manager.plugins
    ]
    registry = Registry(manager)
    for kind in KINDS:
        for name, component in registry.components(kind).items():
            try:
                component.load_config_class()
                component.load_target()
            except (FreeflowError, ImportError) as error:
                checks.append(Check(f"{kind} {name}", "error", str(error)))
    return checks
