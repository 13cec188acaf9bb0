"""Whether the installation can work."""

from __future__ import annotations

from freeflow_core.engine.diagnose import Check
from freeflow_core.engine.diagnose import diagnose as _diagnose
from freeflow_core.plugin import Manager


def diagnose(manager: Manager | None = None) -> list[Check]:
    """The checks of ``freeflow doctor``."""
    return _diagnose(manager or Manager.load())
