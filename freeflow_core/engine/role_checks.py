"""Whether the roles an objective asks for are networks that can be trained beside each other."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from freeflow_core.engine.describe import describe
from freeflow_core.errors import PluginError
from freeflow_core.interfaces import Role, Student, Teacher

_TEACHER = "the teacher, which is never trained"


def check_roles(objective: str, roles: Mapping[str, Role], student: Student, teacher: Teacher | None) -> None:
    """Every role is a network of its own. Raises ``PluginError`` for one that shares weights, or has none to train."""
    owners = _owners(student, "the student") | ({} if teacher is None else _owners(teacher, _TEACHER))
    for name, role in roles.items():
        if not isinstance(role, Role):
            raise PluginError(
                f"The objective {objective!r} returned {describe(role)} as the role {name!r}; expected a "
                "freeflow_core.interfaces.Role."
            )
        shared = next((owners[p.data_ptr()] for p in role.network.parameters() if p.data_ptr() in owners), None)
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
