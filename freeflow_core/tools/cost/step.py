"""One training step, taken to see what it holds and computes. The weights it changes are thrown away."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast, final

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from freeflow_core.config import RunConfig
from freeflow_core.engine.build import Components
from freeflow_core.engine.state import RoleState, TrainingState
from freeflow_core.engine.trainer import Trainer
from freeflow_core.interfaces import Teacher
from freeflow_core.types import Condition

if TYPE_CHECKING:
    from accelerate import Accelerator

ACTIVATIONS = "activations"
_aten = torch.ops.aten
TEACHER = "teacher"
GRADIENT, DERIVATIVE = 3.0, 2.0
"""A row with gradient goes forward once and backward for twice as much; a forward-mode derivative doubles a pass."""
_MOST_STEPS = 8


@final
class PlannedProcess:
    """The part of an ``Accelerator`` that a training step uses, where nothing is started.

    It is the first of ``num_processes`` processes, working alone: what others would send, it has itself.
    """

    def __init__(self, num_processes: int, device: torch.device) -> None:
        self.num_processes = num_processes
        self.process_index = 0
        self.is_main_process = True
        self.device = device

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def reduce(self, tensor: Tensor, reduction: str = "mean") -> Tensor:
        return tensor

    def prepare_model(self, network: nn.Module) -> nn.Module:
        return network

    def no_sync(self, network: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass(frozen=True)
class RolePlan:
    """One network: its size, and how often a step runs it. Memory in bytes, per process; 0 for what it does not have.

    Args:
        name: ``"teacher"``, ``"student"``, or a role of the objective such as ``"fake_velocity"``.
        parameters: number of weights.
        weights: the weights themselves, and buffers.
        gradients: when all of them are there, at the end of the backward pass.
        optimizer: moments and step counts, from the first update on.
        average: exponential moving average of the weights.
        offloaded: moments in the host's memory, which are not part of the device's.
        gradient_passes: forward passes with gradient in one step, per image of the batch.
        other_passes: forward passes without gradient, per image; a forward-mode derivative counts as one.
    """

    name: str
    parameters: int
    weights: int
    gradients: int = 0
    optimizer: int = 0
    average: int = 0
    offloaded: int = 0
    gradient_passes: float = 0.0
    other_passes: float = 0.0

    @property
    def memory(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.average


@dataclass(frozen=True)
class StepCost:
    """What one process holds and does in a step: networks, bytes of activations, peak bytes, operations.

    ``phases`` are the activations outside (False) and inside (True) of backward passes.
    """

    networks: tuple[RolePlan, ...]
    activations: int
    peak: int
    flops: float
    phases: Mapping[bool, int]


def measure_step(config: RunConfig, components: Components, state: TrainingState, process: PlannedProcess) -> StepCost:
    """Take a step, or as many as it takes until every trainable role was updated once, and report their mean.

    Memory is the largest over these steps. Optimizers have their moments from the start, as after a first step.
    """
    memory, teacher = MemoryTracker(), components.teacher
    with memory:
        plans = []
        if teacher is not None:  # first: what students share with it is its own
            plans.append(RolePlan(TEACHER, _count(teacher), memory.assign(TEACHER, _tensors(teacher))))
        plans += [_fixed_memory(memory, name, role) for name, role in state.roles.items()]
        trainer = Trainer(config, components, state, cast("Accelerator", process))
        memory.restart()
        with counted_rows({name: role.network for name, role in state.roles.items()}, teacher) as counts:
            steps = 0
            while steps < _MOST_STEPS and any(role.optimizer and not role.updates for role in state.roles.values()):
                trainer.step()
                steps += 1
    images = steps * config.training.batch_size / process.num_processes

    def with_passes(plan: RolePlan) -> RolePlan:
        rows = counts.get(plan.name, Rows()) / images
        return replace(
            plan,
            gradients=memory.largest[f"{plan.name} gradients"],
            gradient_passes=rows.gradient,
            other_passes=rows.plain + rows.derivative,
        )

    networks = tuple(map(with_passes, plans))
    return StepCost(networks, memory.largest[ACTIVATIONS], memory.peak, memory.flops / steps, dict(memory.phases))


def size_of(network: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(network))


def _fixed_memory(memory: MemoryTracker, name: str, role: RoleState) -> RolePlan:
    weights = memory.assign(f"{name} weights", _tensors(role.network))
    average = memory.assign(f"{name} average", _tensors(role.ema)) if role.ema is not None else 0
    moments, offloaded = 0, 0
    if role.optimizer is not None:
        nothing = torch.zeros(())
        for parameter in role.optimizer.parameters:
            parameter.grad = torch.zeros_like(parameter)
        role.optimizer.step(0.0, nothing, nothing)
        kept, on_host = role.optimizer.kept()
        moments, offloaded = memory.assign(f"{name} optimizer", kept), memory.leave_out(on_host)

        def follow(parameter: Tensor) -> None:  # torch takes what a hook returns for a gradient
            memory.assign(f"{name} gradients", [] if parameter.grad is None else [parameter.grad])

        for parameter in role.optimizer.parameters:
            parameter.register_post_accumulate_grad_hook(follow)  # type: ignore[no-untyped-call]
    return RolePlan(name, _count(role.network), weights, optimizer=moments, average=average, offloaded=offloaded)


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]


def _count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


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

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and torch would load its compiler to say so: as long as torch itself

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
        """Count the storages of ``tensors`` as ``kind``, unless they are of another already; the bytes of this one."""
        size = 0
        for tensor in tensors:
            key = self._key(tensor)
            if key not in self._storages:
                self._add(tensor, kind)
            old, nbytes, reference = self._storages[key]
            if old == ACTIVATIONS:
                self._storages[key] = (kind, nbytes, reference)
                self._change(old, -nbytes)
                self._change(kind, nbytes)
            size += nbytes if self._storages[key][0] == kind else 0
        return size

    def leave_out(self, tensors: Iterable[Tensor]) -> int:
        """Count ``tensors`` no more, for they are not the device's; their bytes."""
        size = 0
        for tensor in tensors:
            kind, nbytes, reference = self._storages[self._key(tensor)]
            self._change(kind, -nbytes)
            self._storages[self._key(tensor)] = (kind, 0, reference)
            size += nbytes
        return size

    def restart(self) -> None:
        """Forget peaks and operations; go on following what is held now."""
        self.flops, self.peak, self.largest, self.phases = 0, self._total, Counter(self._held), Counter()

    def _add(self, tensor: Tensor, kind: str) -> None:
        storage = tensor.untyped_storage()
        key, nbytes = storage._cdata, storage.nbytes()

        def freed(_: Any) -> None:
            kind, size, _ = self._storages.pop(key)
            self._change(kind, -size)

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
        return int(sdpa_flop_count(*(part.shape for part in args[:3])))  # type: ignore[no-untyped-call]
    if packet is _aten._scaled_dot_product_flash_attention_for_cpu_backward:
        return int(sdpa_backward_flop_count(*(part.shape for part in args[:4])))  # type: ignore[no-untyped-call]
    count = flop_registry.get(packet)
    return 0 if count is None else int(count(*args, **kwargs, out_val=out))


@dataclass(frozen=True)
class Rows:
    """Rows through one network: without gradient, with gradient, and with a forward-mode derivative."""

    plain: float = 0
    gradient: float = 0
    derivative: float = 0

    @property
    def forwards(self) -> float:
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
    unpacked = (forward_ad.unpack_dual(value) for value in inputs if value.is_floating_point())  # type: ignore[no-untyped-call]
    if any(value.tangent is not None for value in unpacked):
        return Rows(derivative=number)
    return Rows(gradient=number) if torch.is_grad_enabled() else Rows(plain=number)
