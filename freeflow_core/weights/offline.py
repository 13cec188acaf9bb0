"""The switch that forbids downloads."""

from __future__ import annotations

import os

OFFLINE_VARIABLE = "FREEFLOW_OFFLINE"
_HUB_VARIABLE = "HF_HUB_OFFLINE"
_NO = ("", "0", "false", "no", "off")


def offline_variable() -> str | None:
    """The variable that is set to forbid downloads, or None. ``FREEFLOW_OFFLINE=0`` outweighs ``HF_HUB_OFFLINE=1``."""
    for variable in (OFFLINE_VARIABLE, _HUB_VARIABLE):
        value = os.environ.get(variable)
        if value is not None:
            if value.strip().lower() not in _NO:
                return variable
            if variable == OFFLINE_VARIABLE and value.strip():
                return None
    return None
