"""Adam's moments between steps: as they are, or in fewer bytes or the host's memory and unpacked piece by piece."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, final

import torch
from torch import Tensor

from freeflow_core.config import OptimizerConfig
from freeflow_core.engine.optimizer import Piece, Whole, grouped
from freeflow_core.errors import ConfigError
from freeflow_core.torchvision_ops import silence_torchao

Precision = Literal["full", "bf16", "8bit"]
_BLOCK = 256
"""Elements with one scale in 8 bits (Dettmers et al. 2022); none belong to two weights."""
_LEAST = 4096
"""Smaller weights keep whole moments in 8 bits: biases and norms, which take no memory and suffer most."""
_TINY = 1e-12


def packing_for(config: OptimizerConfig, *, on_host: bool) -> Packing | None:
    """How an optimizer's moments are kept between steps; None: as they are. Raises as :class:`Packing` does."""
    return None if config.moments == "full" and not on_host else Packing(config.moments, on_host=on_host)


@final
class Packing:
    """How moments are kept between steps.

    Args:
        precision: that of the weights, or fewer bits.
        on_host: in the host's memory.

    Raises:
        ConfigError: 8 bits are asked for and torchao is missing.
    """

    def __init__(self, precision: Precision, *, on_host: bool) -> None:
        self.precision, self.on_host = precision, on_host
        self.workspace: list[Tensor] = []
        """Where pieces are unpacked, on the weights' device."""
        self._code = _Code() if precision == "8bit" else None

    def pieces(self, weights: Sequence[Tensor]) -> list[Piece]:
        """Moments of zero for ``weights``."""
        small = [i for i, w in enumerate(weights) if self._code is not None and w.numel() < _LEAST]
        found: list[Piece] = [Whole(small, [weights[i] for i in small])] if small else []
        groups = grouped(weights, sorted(set(range(len(weights))) - set(small)))
        lengths = [sum(_slot(weights[i]) for i in group) for group in groups]
        self.workspace = [weights[0].new_empty(max(lengths, default=0)) for _ in range(2)]
        for group, length in zip(groups, lengths, strict=True):
            pairs = zip(self.workspace, (True, False), strict=True)
            stores = [self._store(space[:length], signed) for space, signed in pairs]
            found.append(_Packed(group, [weights[i] for i in group], stores, on_host=self.on_host))
        return found

    def _store(self, values: Tensor, signed: bool) -> _Store:
        if self._code is not None:
            return _EightBit(values, self._code, signed=signed, on_host=self.on_host)
        return _Floats(values, torch.bfloat16 if self.precision == "bf16" else values.dtype, on_host=self.on_host)


def _slot(weight: Tensor) -> int:
    return -(-weight.numel() // _BLOCK) * _BLOCK


@final
class _Packed(Piece):
    is_packed = True

    def __init__(
        self, indices: Sequence[int], weights: Sequence[Tensor], stores: Sequence[_Store], *, on_host: bool
    ) -> None:
        self.indices, self.on_host = indices, on_host
        self.kept = [tensor for store in stores for tensor in store.kept]
        self._stores = stores
        slots = [_slot(w) for w in weights]
        self._first, self._second = (
            [slot[: w.numel()].view(w.shape) for slot, w in zip(torch.split(store.values, slots), weights, strict=True)]
            for store in stores
        )

    def open(self) -> tuple[list[Tensor], list[Tensor]]:
        for store in self._stores:
            store.read()
        return self._first, self._second

    def close(self) -> None:
        for store in self._stores:
            store.write()


class _Store(ABC):
    """One moment of a piece. ``values`` (n,) is where it is unpacked, on the weights' device."""

    values: Tensor
    kept: Sequence[Tensor]

    @abstractmethod
    def read(self) -> None: ...

    @abstractmethod
    def write(self) -> None: ...


def _zeros(values: Tensor, number: int, dtype: torch.dtype, *, on_host: bool) -> Tensor:
    if on_host and values.is_cuda:
        return torch.zeros(number, dtype=dtype, pin_memory=True)
    return values.new_zeros(number, dtype=dtype)


@final
class _Floats(_Store):
    def __init__(self, values: Tensor, dtype: torch.dtype, *, on_host: bool) -> None:
        self.values = values
        self._packed = _zeros(values, len(values), dtype, on_host=on_host)
        self.kept = [self._packed]

    def read(self) -> None:
        self.values.copy_(self._packed, non_blocking=True)

    def write(self) -> None:
        self._packed.copy_(self.values, non_blocking=True)


@final
class _EightBit(_Store):
    """Codes of torchao's dynamic map, and for each block its largest value *with its sign*.

    With the sign the largest value has the code of 1 exactly, so that packing what was unpacked changes nothing:
    neither a skipped step nor a restart does.
    """

    def __init__(self, values: Tensor, code: _Code, *, signed: bool, on_host: bool) -> None:
        self.values, self._code = values, code
        self._codes = _zeros(values, len(values), torch.uint8, on_host=on_host)
        self._scales = _zeros(values, len(values) // _BLOCK, torch.float32, on_host=on_host)
        self._map = values.new_tensor(code.levels[signed], dtype=torch.float32)
        self.kept = [self._codes, self._scales, self._map]

    def read(self) -> None:
        codes, scales = (kept.to(self.values.device, non_blocking=True) for kept in (self._codes, self._scales))
        self.values.copy_(self._code.library.dequant_with_qmap(codes, self._map, scales))

    def write(self) -> None:
        blocks = self.values.view(-1, _BLOCK)
        high, low = blocks.amax(1), blocks.amin(1)
        scales = torch.where(high >= -low, high.clamp(min=_TINY), low.clamp(max=-_TINY)).float()
        codes = self._code.library.quantize_8bit_with_qmap(blocks / scales[:, None], self._map)
        self._codes.copy_(codes.flatten(), non_blocking=True)
        self._scales.copy_(scales, non_blocking=True)


@final
class _Code:
    """torchao's functions, and its levels in [-1, 1] for signed numbers and in [0, 1] for others."""

    def __init__(self) -> None:
        silence_torchao()
        try:
            from torchao.optim import quant_utils
        except ImportError as error:
            raise ConfigError(
                f"training.optimizer.moments=8bit needs torchao ({error}). Install it with: pip install "
                "'freeflow-distill[low-bit]', or use training.optimizer.moments=bf16."
            ) from error
        self.library = quant_utils
        self.levels = {signed: quant_utils.create_dynamic_map(signed=signed) for signed in (True, False)}
