"""Which attention kernels run here, and which derivative methods follow from that."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from freeflow_core.types import Check

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


def check_attention() -> list[Check]:
    """Kernels by precision, then forward mode by kernel, then what needs neither."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    usable = {name: _usable(device, dtype) for name, dtype in _DTYPES.items()}
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


def _runs(backend: SDPBackend, q: Tensor) -> bool:
    try:
        with sdpa_kernel(backend):
            functional.scaled_dot_product_attention(q, q, q)
    except RuntimeError:
        return False
    return True


def _forward_mode(device: str, backend: SDPBackend) -> bool:
    q = torch.randn(1, 2, 8, 32, device=device)
    try:
        with sdpa_kernel(backend):
            torch.func.jvp(lambda x: functional.scaled_dot_product_attention(x, q, q), (q,), (q,))
    except (RuntimeError, NotImplementedError):
        return False
    return True


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
