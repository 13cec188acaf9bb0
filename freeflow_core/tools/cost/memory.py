"""Bytes held and operations done, counted while tensor operations run."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

ACTIVATIONS = "activations"
_aten = torch.ops.aten


@final
class MemoryTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows every storage from the operation that made it until its last owner lets go.

    While it is entered, every operation passes through it. Storages are ``ACTIVATIONS`` unless :meth:`assign` says
    otherwise; a storage that several tensors share counts once.

    Attributes:
        flops: floating-point operations of matrix products, convolutions and attention so far.
        peak: largest number of bytes held at once.
        largest: largest number of bytes of each kind, at its own time.
        phases: largest number of bytes of activations outside (False) and inside (True) of backward passes.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self.peak = 0
        self.largest: Counter[str] = Counter()
        self.phases: Counter[bool] = Counter()
        self._held: Counter[str] = Counter()
        self._total = 0
        self._storages: dict[int, tuple[str, int, weakref.ref[Any]]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and self._key(leaf) not in self._storages:
                self._add(leaf, ACTIVATIONS)
        self.flops += _flops(func, args, kwargs, out)
        return out

    def assign(self, kind: str, tensors: Iterable[Tensor]) -> int:
        """Count the storages of ``tensors`` as ``kind``; their bytes in all."""
        size = 0
        for tensor in tensors:
            key = self._key(tensor)
            if key not in self._storages:
                self._add(tensor, kind)
            else:
                old, nbytes, reference = self._storages[key]
                self._storages[key] = (kind, nbytes, reference)
                self._change(old, -nbytes)
                self._change(kind, nbytes)
            size += self._storages[key][1]
        return size

    def restart(self) -> None:
        """Forget peaks and operations; go on following what is held now."""
        self.flops, self.peak, self.largest, self.phases = 0, self._total, Counter(self._held), Counter()

    def _add(self, tensor: Tensor, kind: str) -> None:
        storage = tensor.untyped_storage()
        key, nbytes = storage._cdata, storage.nbytes()

        def freed(_: Any) -> None:
            self._change(self._storages.pop(key)[0], -nbytes)

        self._storages[key] = (kind, nbytes, weakref.ref(storage, freed))
        self._change(kind, nbytes)

    def _change(self, kind: str, nbytes: int) -> None:
        self._held[kind] += nbytes
        self._total += nbytes
        self.largest[kind] = max(self.largest[kind], self._held[kind])
        self.peak = max(self.peak, self._total)
        phase = torch._C._current_graph_task_id() >= 0
        self.phases[phase] = max(self.phases[phase], self._held[ACTIVATIONS])

    @staticmethod
    def _key(tensor: Tensor) -> int:
        return tensor.untyped_storage()._cdata


def _flops(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int:
    packet = func._overloadpacket
    if packet is _aten._scaled_dot_product_flash_attention_for_cpu:
        shapes = (part.shape for part in args[:3])
        return int(sdpa_flop_count(*shapes))  # type: ignore[no-untyped-call]
    if packet is _aten._scaled_dot_product_flash_attention_for_cpu_backward:
        shapes = (part.shape for part in args[:4])
        return int(sdpa_backward_flop_count(*shapes))  # type: ignore[no-untyped-call]
    count = flop_registry.get(packet)
    return 0 if count is None else int(count(*args, **kwargs, out_val=out))
