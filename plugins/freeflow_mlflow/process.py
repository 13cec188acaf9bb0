"""Tells a run that is still going on from one whose process was killed."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from typing import Any

import psutil


def this_process() -> dict[str, Any]:
    """What identifies this process: host, process id and the time it began."""
    return {"host": platform.node(), "pid": os.getpid(), "created": psutil.Process().create_time()}


def is_alive(process: Mapping[str, Any]) -> bool:
    """True when it runs on this host; a process on another host cannot be seen and counts as gone."""
    if process.get("host") != platform.node():
        return False
    try:
        return abs(psutil.Process(process["pid"]).create_time() - process["created"]) < 1.0
    except psutil.Error:
        return False
