"""Networks, optimizers and averages of all roles: everything a checkpoint must hold."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from freeflow_core.config import RunConfig
from freeflow_core.engine.blocks import compile_blocks, hold_in_bf16
from freeflow_core.engine.build import DTYPES, Components
from freeflow_core.engine.moments import packing_for
from freeflow_core.engine.optimizer import Copies, RoleOptimizer
from freeflow_core.engine.process import processes_per_copy
from freeflow_core.errors import CheckpointError, ConfigError, PluginError
from freeflow_core.interfaces import Model, Models, Role, StatefulObjective, Student, Teacher, Transition
from freeflow_core.network_file import check_tensors
from freeflow_core.types import describe

if TYPE_CHECKING:
    from accelerate import Accelerator

    from freeflow_core.engine.sharding import Sharding, WholeCopies

_log = logging.getLogger("freeflow")
STUDENT = "student"
OBJECTIVE = "objective"
_TEACHER = "the teacher, which is never trained"


@dataclass
class RoleState:
    """One role while it trains. ``optimizer`` is None for a frozen role, ``ema`` None for one without average.

    ``follows`` names the role that a frozen one trails, ``follow_halflife_images`` how closely (None: a copy).
    ``sharding``: how the networks are divided among processes, or None. ``is_compiled``: block by block.
    """

    network: nn.Module
    wrapped: nn.Module
    optimizer: RoleOptimizer | None
    ema: nn.Module | None
    follows: str | None = None
    follow_halflife_images: float | None = None
    updates: int = 0
    sharding: Sharding | None = None
    is_compiled: bool = False
    averages: Copies = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.averages = Copies.of(self.network if self.ema is None else self.ema, self.network, self.sharding)


@dataclass
class TrainingState:
    """All roles, what the objective itself remembers, and how far the run has come.

    Where networks are divided, ``whole`` holds the undivided student and teacher that evaluation asks.
    """

    roles: dict[str, RoleState]
    objective: StatefulObjective | None = None
    images: int = 0
    step: int = 0
    whole: WholeCopies | None = None

    def models(self, components: Components) -> Models:
        models = {
            name: Model(role.wrapped, role.network, role.ema, role.sharding is not None, role.is_compiled)
            for name, role in self.roles.items()
        }
        return Models(models, components.teacher)

    def outside(self, components: Components, *, use_ema: bool) -> tuple[Components, Student]:
        """What is asked outside of training, inside :meth:`shown` alone: the components, and the (averaged) student."""
        if self.whole is None:
            student: Any = self._shown(use_ema)
            return components, student
        student, teacher = self.whole.student, self.whole.teacher or components.teacher
        return replace(components, student=student, teacher=teacher), student

    @property
    def sharding(self) -> Sharding | None:
        return self.roles[STUDENT].sharding

    def apply(self, changes: Iterable[Transition]) -> None:
        """What an objective in rounds asks for between two of them."""
        for change in changes:
            source = self.roles[change.copy_from].network
            self.roles[change.copy_to].network.load_state_dict(source.state_dict())
            for name in change.reset_optimizer:
                if (optimizer := self.roles[name].optimizer) is not None:
                    optimizer.reset()
            for name in change.reset_ema:
                role = self.roles[name]
                if role.ema is not None:
                    role.ema.load_state_dict(role.network.state_dict())

    @contextmanager
    def shown(self, components: Components, *, use_ema: bool) -> Iterator[None]:
        """While it lasts, the networks of :meth:`outside` have weights. For all processes together."""
        if self.whole is None:
            yield
            return
        with self.whole.filled(self._shown(use_ema), components.teacher):
            yield

    def _shown(self, use_ema: bool) -> nn.Module:
        role = self.roles[STUDENT]
        return role.ema if use_ema and role.ema is not None else role.network

    def tensors(self, copied: Callable[[Tensor], Tensor] | None = None) -> dict[str, dict[str, Tensor]]:
        """Everything by file name: ``objective``, ``<role>``, ``<role>.ema``, ``<role>.optimizer``.

        ``copied`` makes what is given of each tensor; None: as they are, packed moments copied to the host's memory.
        """

        def of(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return dict(found) if copied is None else {name: copied(tensor) for name, tensor in found.items()}

        files = {OBJECTIVE: {} if self.objective is None else of(self.objective.state_dict())}
        for name, role in self.roles.items():
            files[name] = of(role.network.state_dict())
            if role.ema is not None:
                files[f"{name}.ema"] = of(role.ema.state_dict())
            if role.optimizer is not None:
                files[f"{name}.optimizer"] = role.optimizer.state_dict(copied)
        return files

    def layout(self) -> dict[str, dict[str, Tensor]]:
        """Tensors of the shapes, and divided in the way, of those that :meth:`tensors` gives once all roles trained."""
        optimizers = {f"{name}.optimizer": role.optimizer for name, role in self.roles.items()}
        return self.tensors() | {name: each.layout() for name, each in optimizers.items() if each is not None}

    def load(self, files: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore what :meth:`tensors` gave. Raises :class:`CheckpointError` before anything is changed."""
        expected = self.tensors()
        if missing := sorted(expected.keys() - files.keys()):
            raise CheckpointError(f"The checkpoint lacks {', '.join(missing)}: it belongs to another objective.")
        for name in expected:
            if name != OBJECTIVE and not name.endswith(".optimizer"):
                check_tensors(expected[name], files[name], f"checkpoint of {name}")
        if self.objective is not None:
            self.objective.load_state_dict(files[OBJECTIVE])
        elif kept := sorted(files[OBJECTIVE]):
            raise CheckpointError(f"The checkpoint holds {', '.join(kept)} of an objective; this run's keeps nothing.")
        for name, role in self.roles.items():
            role.network.load_state_dict(files[name])
            if role.ema is not None:
                role.ema.load_state_dict(files[f"{name}.ema"])
            if role.optimizer is not None:
                role.optimizer.load_state_dict(files[f"{name}.optimizer"])


def build_state(config: RunConfig, components: Components, accelerator: Accelerator) -> TrainingState:
    """The student, then the roles its objective asks for, wrapped for training on all processes."""
    if config.runtime.activation_checkpointing:
        components.student.enable_activation_checkpointing()  # before the objective copies it
    roles = {STUDENT: Role(components.student, trainable=True, ema=True)}
    asked = components.objective.roles(components.student, components.teacher)
    _check_roles(config.objective.name, asked, components.student, components.teacher)
    for name, role in asked.items():
        if name in (STUDENT, OBJECTIVE):
            raise PluginError(f"The objective {config.objective.name!r} may not define a role named {name!r}.")
        roles[name] = role
    for name, role in roles.items():
        if role.follows is not None and (role.trainable or role.follows not in roles):
            raise PluginError(
                f"The role {name!r} of the objective {config.objective.name!r} follows {role.follows!r}: expected a "
                f"frozen role that follows one of {', '.join(sorted(roles))}."
            )
    if config.runtime.teacher_weights == "bf16":
        _round_teacher(config, components.teacher, roles)
    objective = components.objective if isinstance(components.objective, StatefulObjective) else None
    sharding = _open_sharding(config, accelerator)
    whole = None if sharding is None else _whole_copies(components, roles)
    started = {name: _start_role(config, role, accelerator, sharding) for name, role in roles.items()}
    if sharding is not None and components.teacher is not None and sharding.divide_blocks(components.teacher):
        for part in components.teacher.modules():
            if isinstance(part, Teacher):
                part.is_divided = True
    if config.runtime.compile:
        networks: dict[str, nn.Module | None] = {name: state.network for name, state in started.items()}
        networks |= {f"{name}_average": state.ema for name, state in started.items()} | {"teacher": components.teacher}
        if whole is not None:
            networks |= {"whole_student": whole.student, "whole_teacher": whole.teacher}
        for name, network in networks.items():
            if network is not None:
                compile_blocks(network, name, config.runtime.compile_backend)
        for state in started.values():
            state.is_compiled = True
    training = {name: state.network for name, state in started.items() if state.optimizer is not None}
    frozen = {name: layers for name, network in training.items() if (layers := training_mode(network))}
    if frozen:
        kinds = dict.fromkeys(kind for layers in frozen.values() for kind in layers)
        _log.warning(
            f"Networks in training ({', '.join(frozen)}; student: {config.student.name!r}) normalise by statistics of "
            f"the batch ({', '.join(kinds)}). These layers keep the statistics they start with, in training as in "
            "sampling, so that no sample depends on those beside it; their scales and shifts train on."
        )
    return TrainingState(started, objective, whole=whole)


def _round_teacher(config: RunConfig, teacher: Teacher | None, roles: Mapping[str, Role]) -> None:
    """Hold the teacher's weights in bf16, once all that starts from them has been made.

    Raises :class:`ConfigError` where there are none, or where a student trains on top of them.
    """
    owners = {} if teacher is None else _owners(teacher, _TEACHER)
    if any(address in owners for role in roles.values() for address in _owners(role.network, "")):
        raise ConfigError(
            f"The student {config.student.name!r} holds its teacher's weights together with it, as adapters do, and "
            "differentiates through them. Leave runtime.teacher_weights at run."
        )
    if teacher is None or not hold_in_bf16(teacher):
        who = f"the teacher {config.teacher.name!r} has" if config.teacher else "a run without a teacher has"
        raise ConfigError(
            f"runtime.teacher_weights=bf16 is about the layers of a teacher's blocks, and {who} none (an exact "
            "function, a small network, or a program read from a file). Leave it at run."
        )


def _open_sharding(config: RunConfig, accelerator: Accelerator) -> Sharding | None:
    if processes_per_copy(config.runtime, accelerator.num_processes) == 1 or accelerator.device.type == "meta":
        return None
    from freeflow_core.engine.sharding import Sharding

    return Sharding.of(config.runtime, accelerator)


def _whole_copies(components: Components, roles: Mapping[str, Role]) -> WholeCopies:
    """Raises :class:`ConfigError` for networks that hold weights together, which would be divided twice."""
    from freeflow_core.engine.sharding import WholeCopies

    owners = {} if components.teacher is None else _owners(components.teacher, _TEACHER)
    for name, role in roles.items():
        for address in _owners(role.network, name):
            if address in owners:
                raise ConfigError(
                    f"The network of {name} holds weights together with {owners[address]}, as adapters do. They "
                    "cannot be divided among processes: use runtime.sharding=none, or train all weights."
                )
    whole = WholeCopies(components.student, components.teacher)
    training_mode(whole.student)
    return whole


def training_mode(network: nn.Module) -> list[str]:
    """``network.train()``, but for layers with running statistics, which would mix the rows of a batch; their classes.

    A jump that is a function of its whole batch in training is another function of one sample afterwards: a U-Net's
    loss fell while its samples were ruined (distance 586; with these layers frozen 9).
    """
    network.train()
    frozen = [m for m in network.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
    for layer in frozen:
        layer.eval()
    return [type(layer).__name__ for layer in frozen]


def _start_role(config: RunConfig, role: Role, accelerator: Accelerator, sharding: Sharding | None) -> RoleState:
    network = role.network.to(device=accelerator.device, dtype=DTYPES[config.runtime.precision])
    network.train(role.trainable)
    network.requires_grad_(role.trainable)
    ema = copy.deepcopy(network).eval().requires_grad_(False) if role.ema else None
    if sharding is not None:
        for divided in filter(None, (network, ema)):
            sharding.divide(divided)
    chosen = role.optimizer or config.training.optimizer
    optimizer = None
    if role.trainable:
        packing = packing_for(chosen, on_host=config.runtime.offload_optimizer)
        optimizer = RoleOptimizer(network, chosen, sharding, packing)
    wrapped: Any = network
    if role.trainable and accelerator.num_processes > 1 and sharding is None:
        wrapped = accelerator.prepare_model(network)
    return RoleState(network, wrapped, optimizer, ema, role.follows, role.follow_halflife_images, sharding=sharding)


def _check_roles(objective: str, roles: Mapping[str, Role], student: Student, teacher: Teacher | None) -> None:
    """No role trains another's weights. Raises ``PluginError`` for one that would, or that has none to train.

    What a student of adapters freezes, all its copies may hold together.
    """
    student.requires_grad_(True)
    owners = _owners(student, "the student") | ({} if teacher is None else _owners(teacher, _TEACHER))
    adapted = {p.data_ptr() for p in student.parameters() if not p.requires_grad}
    for name, role in roles.items():
        if not isinstance(role, Role):
            raise PluginError(
                f"The objective {objective!r} returned {describe(role)} as the role {name!r}; expected a "
                "freeflow_core.interfaces.Role."
            )
        role.network.requires_grad_(role.trainable)
        found = (p for p in role.network.parameters() if p.requires_grad or p.data_ptr() not in adapted)
        shared = next((owners[p.data_ptr()] for p in found if p.data_ptr() in owners), None)
        shared = _TEACHER if role.network is teacher else shared
        if shared is not None:
            raise PluginError(
                f"The role {name!r} of the objective {objective!r} shares weights with {shared}; expected a network of "
                "its own. Give it copy.deepcopy(network)."
            )
        if role.trainable and next(role.network.parameters(), None) is None:
            raise PluginError(
                f"The role {name!r} of the objective {objective!r} is trainable, but its {type(role.network).__name__} "
                "has no parameters; expected some, or Role(..., trainable=False)."
            )


def _owners(network: nn.Module, name: str) -> dict[int, str]:
    """Where its weights lie; none for one that is only planned, whose weights lie nowhere."""
    return {p.data_ptr(): name for p in network.parameters() if p.numel() and p.device.type != "meta"}
