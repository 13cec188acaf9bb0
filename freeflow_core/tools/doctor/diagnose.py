"""`freeflow doctor`: what is installed, what works, and what to do about the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from freeflow_core.plugin import Manager
from freeflow_core.tools.doctor.attention import check_attention
from freeflow_core.tools.doctor.hardware import check_hardware
from freeflow_core.tools.doctor.launch import check_launch
from freeflow_core.tools.doctor.plugins import check_plugins
from freeflow_core.tools.doctor.storage import check_storage
from freeflow_core.tools.doctor.tracking import check_tracking
from freeflow_core.tools.doctor.versions import check_versions
from freeflow_core.types import Check


def diagnose(manager: Manager) -> list[Check]:
    """All checks; each stands for itself, and one that fails in a way of its own is a finding like others."""
    parts: list[tuple[str, Callable[[], Iterable[Check]]]] = [
        ("versions", check_versions),
        ("device", check_hardware),
        ("attention", check_attention),
        ("distributed launch", check_launch),
        ("storage", check_storage),
        ("MLflow", lambda: [check_tracking()]),
        ("plugins", lambda: check_plugins(manager)),
    ]
    found: list[Check] = []
    for name, part in parts:
        try:
            found.extend(part())
        except Exception as error:  # a doctor that falls ill helps nobody
            reason = " ".join(str(error).split())
            found.append(Check(name, "error", f"could not be looked at: {type(error).__name__}: {reason}"))
    return found
