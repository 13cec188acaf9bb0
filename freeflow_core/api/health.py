"""Whether the installation can work."""

from __future__ import annotations

from freeflow_core.plugin import Manager
from freeflow_core.tools.doctor.diagnose import diagnose as _diagnose
from freeflow_core.types import Check


def diagnose(manager: Manager | None = None) -> list[Check]:
    """The checks of ``freeflow doctor``."""
    return _diagnose(manager or Manager.load())
