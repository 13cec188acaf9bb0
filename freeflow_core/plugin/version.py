"""The version of the plugin API: what a plugin may rely on, and whether this core offers it."""

from __future__ import annotations

import re
from typing import Any

API_VERSION: tuple[int, int] = (1, 0)
"""(major, minor) of the hooks, interfaces, types and rules that plugins are written against.

A new minor version only adds; a new major version may break a plugin that works today.
"""

ATTRIBUTE = "freeflow_api"
"""What a plugin's module says it needs: ``freeflow_api = "1"``, or ``"1.2"`` for what came with version 1.2."""

UNDECLARED = "1"
"""A plugin that says nothing, such as a one-file experiment, counts as written for the first version."""

_FORM = re.compile(r"(\d+)(?:\.(\d+))?")
_DECLARATION = re.compile(rf"""^{ATTRIBUTE}(?:\s*:[^=\n]*)?\s*=\s*["']([^"'\n]*)["']""", re.MULTILINE)


def api_version() -> str:
    """This core's version, e.g. ``"1.0"``."""
    return ".".join(map(str, API_VERSION))


def needed_version(plugin: Any) -> str:
    """What a plugin (a module or object) declares to need, or :data:`UNDECLARED`; may be nonsense."""
    return str(getattr(plugin, ATTRIBUTE, UNDECLARED))


def needed_in_source(source: str) -> str:
    """The same from a module's text, for one that cannot be imported: perhaps for want of the version it needs."""
    found = _DECLARATION.search(source)
    return found[1] if found else UNDECLARED


def refusal(needed: str) -> str | None:
    """Why a plugin that needs this version cannot be used here, naming both versions; None when it can."""
    found = _FORM.fullmatch(needed)
    if found is None:
        return f'{ATTRIBUTE} = {needed!r} is not a version of the plugin API; expected e.g. "{API_VERSION[0]}"'
    major, minor = int(found[1]), int(found[2] or 0)
    if major == API_VERSION[0] and minor <= API_VERSION[1]:
        return None
    remedy = "update freeflow-distill" if (major, minor) > API_VERSION else "update the plugin"
    return f"it needs version {needed} of the plugin API, and this freeflow has version {api_version()}; {remedy}"
