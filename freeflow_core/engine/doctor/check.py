"""One finding of ``freeflow doctor`` and ``freeflow teacher check``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Check:
    """What was looked at, whether it is as it should be, and what to do where it is not."""

    name: str
    status: Status
    detail: str
