"""A step on torch's ``FakeTensor``: shapes and dtypes without memory, for a device that may be absent.

The tensors are on the CPU for every device planned for: only there does autocast work in all builds of torch. What
another device would do otherwise (its attention kernel, its autocast rules) is imitated here.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_any

_aten = torch.ops.aten
_HOST = torch.device("cpu")


@final
class FakeTensors:
    """Runs code on fake tensors.

    ``device_type``: what is planned for: ``cpu``, ``cuda`` or ``mps``.
    """

    def __init__(self, device_type: str) -> None:
        self._device_type = device_type
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._made: dict[int, tuple[Tensor, Tensor]] = {}  # real ones are kept, so that no other takes their number

    @contextmanager
    def active(self) -> Iterator[None]:
        """Operations on fake tensors give fake ones; those on real ones alone stay real, whatever follows.

        So times, guidance weights and rows chosen by them keep their values.
        """
        real: TorchDispatchMode = _RealUnlessFake()  # type: ignore[no-untyped-call]
        with self._mode, real, _Kernels(self._device_type):
            yield

    def convert(self, module: nn.Module) -> None:
        """Replace all parameters and buffers of ``module`` by fake tensors; ones that modules share stay shared."""

        def fake(tensor: Tensor) -> Any:
            if id(tensor) not in self._made:
                with self._mode:
                    made = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=_HOST)
                if isinstance(tensor, nn.Parameter):
                    made = nn.Parameter(made, tensor.requires_grad)
                self._made[id(tensor)] = tensor, made
            return self._made[id(tensor)][1]

        for part in module.modules():
            for tensors in (part._parameters, part._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None and not _is_fake(tensor):
                        tensors[name] = fake(tensor)


@final
class _RealUnlessFake(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not tree_any(_is_fake, (args, kwargs)):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func is _aten._local_scalar_dense.default:
            return 0.0 if args[0].is_floating_point() else 0  # as for "was a step skipped": there is no number to read
        return func(*args, **kwargs)


@final
class _Kernels(TorchFunctionMode):
    """Chooses as the planned device would, where that decides over memory."""

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self._device_type = device_type

    def __torch_function__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention and _is_fake(args[0] if args else kwargs["query"]):
            if self._has_fused_attention(*args, **kwargs):
                return _fused_attention(*args, **kwargs)
            with sdpa_kernel(SDPBackend.MATH):
                return func(*args, **kwargs)
        if func in (functional.layer_norm, functional.group_norm) and self._device_type == "cuda" and _autocast_is_on():
            # CUDA's autocast runs these in float32, the CPU's in the precision of their input.
            args, kwargs = _in_float32(args), {name: _in_float32((value,))[0] for name, value in kwargs.items()}
        return func(*args, **kwargs)

    def _has_fused_attention(self, query: Tensor, *_: Any, enable_gqa: bool = False, **__: Any) -> bool:
        """Whether no (N, heads, T, T) matrix is made: fused kernels are allowed here, and the device has one."""
        backends: Any = torch.backends.cuda  # whose flags hold for every device
        allowed = backends.flash_sdp_enabled() or backends.mem_efficient_sdp_enabled()
        double = query.dtype is torch.float64 and self._device_type != "cpu"
        return allowed and self._device_type != "mps" and not double and not enable_gqa and query.ndim == 4


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> Tensor:
    """All fused kernels, on every device, keep the same for the backward pass: inputs, output, (N, heads, T) sums."""
    if _autocast_is_on():
        query, key, value = (part.to(torch.get_autocast_dtype("cpu")) for part in (query, key, value))
    if attn_mask is not None:
        attn_mask = attn_mask.to(query.dtype)  # a mask of bools becomes one of numbers before the kernel
    out: Tensor = _aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, is_causal=is_causal, attn_mask=attn_mask, scale=scale
    )[0]
    return out


def _autocast_is_on() -> bool:
    return torch.is_autocast_enabled("cpu")


def _in_float32(values: Sequence[Any]) -> tuple[Any, ...]:
    low = (torch.bfloat16, torch.float16)
    return tuple(v.float() if isinstance(v, Tensor) and v.dtype in low else v for v in values)


def _is_fake(value: Any) -> bool:
    return isinstance(value, FakeTensor)
