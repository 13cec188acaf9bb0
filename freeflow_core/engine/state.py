"""Networks, optimizers and averages of all roles: everything a checkpoint must hold."""

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from freeflow_core.config import RunConfig
from freeflow_core.engine.build import DTYPES, Components
from freeflow_core.engine.optimizer import Copies, RoleOptimizer
from freeflow_core.errors import CheckpointError, PluginError
from freeflow_core.interfaces import Model, Models, Role, StatefulObjective, Student, Teacher
from freeflow_core.network_file import check_tensors
from freeflow_core.types import describe

_log = logging.getLogger("freeflow")
STUDENT = "student"
OBJECTIVE = "objective"
_TEACHER = "the teacher, which is never trained"


@dataclass
class RoleState:
    """One role while it trains. ``optimizer`` is None for a frozen role, ``ema`` None for one without average.

    ``follows`` names the role that a frozen one trails, ``follow_halflife_images`` how closely (None: a copy).
    """

    network: nn.Module
    wrapped: nn.Module
    optimizer: RoleOptimizer | None
    ema: nn.Module | None
    follows: str | None = None
    follow_halflife_images: float | None = None
    updates: int = 0
    averages: Copies = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.averages = Copies.of(self.network if self.ema is None else self.ema, self.network)


@dataclass
class TrainingState:
    """All roles, what the objective itself remembers, and how far the run has come."""

    roles: dict[str, RoleState]
    objective: StatefulObjective | None = None
    images: int = 0
    step: int = 0

    def models(self, components: Components) -> Models:
        models = {name: Model(role.wrapped, role.network, role.ema) for name, role in self.roles.items()}
        return Models(models, components.teacher)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything by file name: ``objective``, ``<role>``, ``<role>.ema``, ``<role>.optimizer``."""
        files = {OBJECTIVE: {} if self.objective is None else self.objective.state_dict()}
        for name, role in self.roles.items():
            files[name] = dict(role.network.state_dict())
            if role.ema is not None:
                files[f"{name}.ema"] = dict(role.ema.state_dict())
            if role.optimizer is not None:
                files[f"{name}.optimizer"] = role.optimizer.state_dict()
        return files

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
    objective = components.objective if isinstance(components.objective, StatefulObjective) else None
    started = {name: _start_role(config, role, accelerator) for name, role in roles.items()}
    training = {name: state.network for name, state in started.items() if state.optimizer is not None}
    frozen = {name: layers for name, network in training.items() if (layers := training_mode(network))}
    if frozen:
        kinds = dict.fromkeys(kind for layers in frozen.values() for kind in layers)
        _log.warning(
            f"Networks in training ({', '.join(frozen)}; student: {config.student.name!r}) normalise by statistics of "
            f"the batch ({', '.join(kinds)}). These layers keep the statistics they start with, in training as in "
            "sampling, so that no sample depends on those beside it; their scales and shifts train on."
        )
    return TrainingState(started, objective)


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


def _start_role(config: RunConfig, role: Role, accelerator: Accelerator) -> RoleState:
    network = role.network.to(device=accelerator.device, dtype=DTYPES[config.runtime.precision])
    network.train(role.trainable)
    network.requires_grad_(role.trainable)
    ema = copy.deepcopy(network).eval().requires_grad_(False) if role.ema else None
    optimizer = RoleOptimizer(network, role.optimizer or config.training.optimizer) if role.trainable else None
    wrapped: Any = network
    if role.trainable and accelerator.num_processes > 1:
        wrapped = accelerator.prepare_model(network)
    if role.trainable and config.runtime.compile:
        wrapped = torch.compile(wrapped)
    return RoleState(network, wrapped, optimizer, ema, role.follows, role.follow_halflife_images)


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
