"""Rows that go through networks, counted while steps run, and what they cost in forward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from freeflow_core.interfaces import Teacher
from freeflow_core.types import Condition

TEACHER = "teacher"
GRADIENT, DERIVATIVE = 3.0, 2.0
"""A row with gradient goes forward once and backward for twice as much; a forward-mode derivative doubles a pass."""


@dataclass(frozen=True)
class Rows:
    """Rows through one network: without gradient, with gradient, and with a forward-mode derivative."""

    plain: float = 0
    gradient: float = 0
    derivative: float = 0

    @property
    def forwards(self) -> float:
        """Their cost in forward passes of one row."""
        return self.plain + GRADIENT * self.gradient + DERIVATIVE * self.derivative

    def __add__(self, other: Rows) -> Rows:
        return Rows(self.plain + other.plain, self.gradient + other.gradient, self.derivative + other.derivative)

    def __truediv__(self, number: float) -> Rows:
        return Rows(self.plain / number, self.gradient / number, self.derivative / number)


Count = dict[str, Rows]
_Velocity = Callable[[Tensor, Tensor, Condition], Tensor]


@contextmanager
def counted_rows(networks: Mapping[str, nn.Module], teacher: Teacher | None) -> Iterator[Count]:
    """Count rows through each network's ``forward`` and through the teacher's ``velocity``, until the block ends.

    The dictionary is filled meanwhile; clear it to count anew. Networks that were never called are left out.
    """
    count: Count = {}

    def add(network: str, inputs: Sequence[Any]) -> None:
        count[network] = count.get(network, Rows()) + _rows([value for value in inputs if isinstance(value, Tensor)])

    def hook(key: str) -> Callable[..., None]:
        return lambda module, inputs, named: add(key, (*inputs, *named.values()))

    handles = [network.register_forward_pre_hook(hook(key), with_kwargs=True) for key, network in networks.items()]

    def counting(velocity: _Velocity) -> _Velocity:
        def counted(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
            add(TEACHER, (x_t, t))
            return velocity(x_t, t, condition)

        return counted

    teachers = [] if teacher is None else _innermost(teacher)
    for inner in teachers:
        vars(inner)["velocity"] = counting(inner.velocity)  # shadows the method meanwhile
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()
        for inner in teachers:
            del vars(inner)["velocity"]


def _innermost(teacher: Teacher) -> list[Teacher]:
    """A teacher made of others, such as a teacher and its guide, costs what those are asked for."""
    inner = [part for part in teacher.modules() if isinstance(part, Teacher) and part is not teacher]
    return list(dict.fromkeys(leaf for part in inner for leaf in _innermost(part))) if inner else [teacher]


def _rows(inputs: Sequence[Tensor]) -> Rows:
    number = inputs[0].shape[0]
    if any(_has_tangent(value) for value in inputs if value.is_floating_point()):
        return Rows(derivative=number)
    return Rows(gradient=number) if torch.is_grad_enabled() else Rows(plain=number)


def _has_tangent(value: Tensor) -> bool:
    return forward_ad.unpack_dual(value).tangent is not None  # type: ignore[no-untyped-call]  # torch's own
