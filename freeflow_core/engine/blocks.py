"""The blocks of a network: what processes gather at once, and what torch.compile compiles at once."""

import importlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FunctionType, MethodType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from freeflow_core.config import RuntimeConfig
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import Student, Teacher

_log = logging.getLogger("freeflow")
Forward: TypeAlias = Callable[..., Any]
_MOST_VARIANTS = 64
"""Of one block's code: precisions, numbers of rows, with gradient and without; beyond it, torch runs it eagerly."""


def blocks(network: nn.Module) -> list[nn.Module]:
    """The members of the outermost ``ModuleList`` s that hold a tenth of the weights or more.

    In a transformer its blocks, in a U-Net its levels.
    """
    least = 0.1 * _weights(network)

    def search(module: nn.Module, *, listed: bool) -> Iterator[nn.Module]:
        for child in module.children():
            if isinstance(child, nn.ModuleList):  # lists of lists, too
                yield from search(child, listed=_weights(child) >= least)
            elif listed and _weights(child):
                yield child
            elif not listed:
                yield from search(child, listed=False)

    return list(search(network, listed=False))


def _weights(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def compile_blocks(network: nn.Module, name: str, backend: str) -> None:
    """Compile the network's blocks, in place, when they are first run; a student without any as a whole.

    Only ``forward`` is replaced: names of weights, copies and the hooks of divided networks stay. Blocks of one class
    share what is compiled, each network's apart from others', so that no two argue about the numbers of rows. A teacher
    is compiled for each number of rows, which it keeps to a few (``Teacher.is_compiled``); another network for the
    first, then for any.

    Raises:
        ConfigError: a backend that this torch does not have.
    """
    known = torch.compiler.list_backends(exclude_tags=None)
    if backend not in known:
        raise ConfigError(
            f"runtime.compile_backend={backend} is no backend of this torch. It has: {', '.join(sorted(known))}."
        )
    found = blocks(network) or ([network] if isinstance(network, Student) else [])
    if isinstance(network, Teacher):
        for part in network.modules():
            if isinstance(part, Teacher):
                part.is_compiled = True
    compiled: dict[Forward, Forward] = {}
    for block in found:
        forward = type(block).forward
        if "forward" in vars(block) or not isinstance(forward, FunctionType):  # somebody else's work
            continue
        if forward not in compiled:
            dynamic = False if isinstance(network, Teacher) else None
            compiled[forward] = _compiled(forward, name, backend, dynamic)
        block.forward = MethodType(compiled[forward], block)
    if not compiled:
        _log.warning(
            f"runtime.compile leaves {name} as it is: a {type(network).__name__} has no blocks (an nn.ModuleList) to "
            "compile."
        )


def _compiled(forward: FunctionType, name: str, backend: str, dynamic: bool | None) -> Forward:
    """``forward``, and its forward-mode derivative where an argument carries a tangent, each compiled."""
    plain = torch.compile(_own(forward, name), backend=backend, dynamic=dynamic)
    inner = _own(forward, f"{name}_inner")

    def derivative(block: nn.Module, inputs: Any, tangents: list[Tensor | None]) -> Any:
        leaves, form = pytree.tree_flatten(inputs)
        args, options = pytree.tree_unflatten(map(_dual, leaves, tangents), form)
        outputs, form = pytree.tree_flatten(inner(block, *args, **options))
        return list(map(_parts, outputs)), form

    along = torch.compile(_own(derivative, name), backend=backend, dynamic=dynamic)

    def run(block: nn.Module, *args: Any, **options: Any) -> Any:
        leaves, form = pytree.tree_flatten((args, options))
        values, tangents = zip(*map(_parts, map(_in_order, leaves)), strict=True)
        inputs = pytree.tree_unflatten(values, form)
        if all(tangent is None for tangent in tangents):
            return plain(block, *inputs[0], **inputs[1])
        # The compiler sees no tangents of what goes in or comes out: they travel as tensors of their own.
        outputs, outward = along(block, inputs, list(tangents))
        return pytree.tree_unflatten([_dual(*parts) for parts in outputs], outward)

    return run


def _own(function: Any, name: str) -> Forward:
    """The same function with code of its own, to which torch.compile ties what it compiled."""
    code = function.__code__.replace(co_name=f"{function.__name__}_of_{name}")
    return FunctionType(code, function.__globals__, code.co_name, function.__defaults__, function.__closure__)


def _in_order(value: Any) -> Any:
    """On a CPU, rows one after another in memory: of others, torch 2.13's compiled gradients are wrong by percents."""
    return value.contiguous() if isinstance(value, Tensor) and value.device.type == "cpu" else value


def _parts(value: Any) -> tuple[Any, Tensor | None]:
    """A value, and its tangent if it has one."""
    return forward_ad.unpack_dual(value) if isinstance(value, Tensor) else (value, None)  # type: ignore[no-untyped-call]


def _dual(value: Any, tangent: Tensor | None) -> Any:
    return value if tangent is None else forward_ad.make_dual(value, tangent)  # type: ignore[no-untyped-call]


@contextmanager
def compiling(runtime: RuntimeConfig) -> Iterator[None]:
    """While it lasts, compiled blocks may come in as many variants as they need.

    Raises:
        ConfigError: networks that torch.compile breaks at.
    """
    if not runtime.compile:
        yield
        return
    dynamo = importlib.import_module("torch._dynamo")  # takes seconds
    with dynamo.config.patch(cache_size_limit=_MOST_VARIANTS):
        try:
            yield
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            raise ConfigError(
                f"runtime.compile: {runtime.compile_backend} cannot compile this run's networks: "
                f"{_reason(error)} Set runtime.compile=false, or runtime.compile_backend=aot_eager, which needs no "
                "compiler for C++ or CUDA."
            ) from error


def uncompiled(runtime: RuntimeConfig) -> AbstractContextManager[None]:
    """While it lasts, compiled blocks run as they were written: for few calls, or to see errors of their own."""
    if not runtime.compile:
        return nullcontext()
    eager: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return eager


def told_first_step(began: float, device: torch.device) -> float:
    """Seconds from ``began`` until the device has taken the step that compiled; they are logged."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - began
    _log.info(f"runtime.compile: the first step, in which networks are compiled, took {seconds:.1f} s.")
    return seconds


def _reason(error: RuntimeError) -> str:
    """The first lines, before torch's advice to its own developers."""
    text = " ".join(str(error).partition("Set TORCHDYNAMO_VERBOSE")[0].split())
    return f"{text[:400].rstrip('.')}."


class _Rounded(nn.Module):
    """Of a layer whose weights are bf16: gives the dtype it was given, as far as autocast leaves that to it."""

    def forward(self, x: Tensor) -> Tensor:
        product = super().forward
        found: Tensor = product(x) if torch.is_autocast_enabled(x.device.type) else product(x.bfloat16()).to(x.dtype)
        return found


_ROUNDED: dict[type[nn.Module], type] = {
    kind: type(kind.__name__, (_Rounded, kind), {}) for kind in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
}
"""Layers whose weights autocast rounds at each call; classes derived from them may use their weights elsewhere."""


def hold_in_bf16(network: nn.Module) -> int:
    """Round the weights of all products in the network's blocks to bf16, in place, for good; how many they are.

    Under autocast the outputs stay what they were, to the bit. Outside, these layers compute in bf16.
    """
    layers = [layer for block in blocks(network) for layer in block.modules() if type(layer) in _ROUNDED]
    for layer in layers:
        layer.bfloat16().__class__ = _ROUNDED[type(layer)]
    return sum(map(_weights, layers))
