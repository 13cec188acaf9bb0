"""The device, what it can compute in, and which attention kernels and derivative methods work on it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable

import psutil
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from freeflow_core.types import Check

_SECONDS = 5
_TF32_CAPABILITY = (8, 0)
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


def check_hardware() -> list[Check]:
    """The device that runs would choose, its memory, and its precisions."""
    if torch.cuda.is_available():
        cuda = f"torch is built for {torch.version.cuda}, driver {driver_version() or 'unknown'}"
        gpus = (_gpu(i) for i in range(torch.cuda.device_count()))
        return [*gpus, Check("CUDA", "ok", cuda), *_precisions("cuda"), _tf32()]
    if torch.backends.mps.is_available():
        return [Check("device", "ok", f"mps, {_memory()} of memory shared with the host"), *_precisions("mps")]
    return [_cpu(), *_precisions("cpu")]


def _gpu(index: int) -> Check:
    free, total = torch.cuda.mem_get_info(index)
    major, minor = torch.cuda.get_device_capability(index)
    detail = (
        f"{torch.cuda.get_device_name(index)}, {total / 2**30:.0f} GiB, {free / 2**30:.0f} free, "
        f"compute capability {major}.{minor}"
    )
    taken = "; another process holds most of its memory" if free < 0.1 * total else ""
    return Check(f"device cuda:{index}", "warning" if taken else "ok", detail + taken)


def _cpu() -> Check:
    detail = f"cpu with {torch.get_num_threads()} of {os.cpu_count()} threads, {_memory()} of memory"
    driver = driver_version()
    if driver is not None:
        why = (
            "this torch is built without CUDA; install a CUDA build"
            if torch.version.cuda is None
            else f"torch is built for CUDA {torch.version.cuda} and cannot use it; update the driver"
        )
        return Check("device", "warning", f"{detail}; there is an NVIDIA GPU (driver {driver}), but {why}")
    return Check("device", "ok", f"{detail}; large teachers need a GPU")


def driver_version() -> str | None:
    """Of the NVIDIA driver, as its own tool tells; None where there is none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0].strip() or None


def _precisions(device: str) -> list[Check]:
    """bf16 is an option of runs; fp16 serves codecs and foreign networks alone."""
    return [_precision(device, "bf16", torch.bfloat16), _precision(device, "fp16", torch.float16)]


def _precision(device: str, name: str, dtype: torch.dtype) -> Check:
    try:
        with torch.autocast(device, dtype=dtype):
            product = torch.ones(8, 8, device=device) @ torch.ones(8, 8, device=device)
        if product.dtype is not dtype:
            return Check(name, "warning", f"autocast on {device} falls back to {product.dtype}")
    except (RuntimeError, TypeError) as error:
        return Check(name, "warning", f"not usable on {device}: {' '.join(str(error).split())[:160]}")
    if device == "cuda" and dtype is torch.bfloat16 and torch.cuda.get_device_capability() < _TF32_CAPABILITY:
        return Check(name, "warning", "emulated on this GPU, and slow; use runtime.precision=float32")
    return Check(name, "ok", f"usable on {device}")


def _tf32() -> Check:
    if torch.cuda.get_device_capability() < _TF32_CAPABILITY:
        return Check("tf32", "ok", "this GPU has none; float32 is float32")
    allowed = torch.get_float32_matmul_precision() != "highest"
    return Check("tf32", "ok", f"supported; {'on' if allowed else 'off'} for matrix products")


def _memory() -> str:
    return f"{psutil.virtual_memory().total / 2**30:.0f} GiB"


def check_attention() -> list[Check]:
    """Kernels by precision, then forward mode by kernel, then what needs neither."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    usable = {name: _usable(device, dtype) for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16))}
    forward = [name for name in usable["float32"] if _forward_mode(device, KERNELS[name])]
    return [
        Check(
            "attention kernels",
            "ok" if usable["float32"] else "error",
            "; ".join(f"{name}: {_listed(kernels)}" for name, kernels in usable.items()) + f" (on {device})",
        ),
        _forward_check(forward, usable["float32"]),
        Check("derivative=central, one-sided", "ok", "any kernel; central in float32, one-sided needs a float32 run"),
    ]


def _forward_check(forward: list[str], usable: list[str]) -> Check:
    name = "derivative=forward-mode"
    if "math" not in forward:
        return Check(name, "warning", "not usable here, even with math attention; use derivative=central")
    others = [kernel for kernel in usable if kernel not in forward]
    rest = (
        f"; {_listed(others)} cannot, and {'is' if len(others) == 1 else 'are'} left out of that pass" if others else ""
    )
    return Check(name, "ok", f"exact, with {_listed(forward)} attention{rest}")


def _usable(device: str, dtype: torch.dtype) -> list[str]:
    q = torch.randn(1, 2, 8, 32, device=device, dtype=dtype)
    return [name for name, backend in KERNELS.items() if _runs(backend, q)]


def _runs(backend: SDPBackend, q: Tensor, *, forward_mode: bool = False) -> bool:
    def attention(x: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(x, q, q)

    try:
        with sdpa_kernel(backend):
            torch.func.jvp(attention, (q,), (q,)) if forward_mode else attention(q)
    except (RuntimeError, NotImplementedError):
        return False
    return True


def _forward_mode(device: str, backend: SDPBackend) -> bool:
    return _runs(backend, torch.randn(1, 2, 8, 32, device=device), forward_mode=True)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
