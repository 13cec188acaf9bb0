"""Numbers and times as people read them."""

from __future__ import annotations

import math
import os
from pathlib import Path


def number(value: float) -> str:
    """Four significant digits; whole numbers up to a million in full, tiny and huge ones with an exponent."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        return f"{value:.2e}"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def clock(seconds: float) -> str:
    """``0:07``, ``12:30``, ``3:00:05``; a dash when unknown."""
    if not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size(num_bytes: float) -> str:
    """Bytes as MiB or GiB."""
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"


def path(value: Path) -> str:
    """Relative to the working folder when it lies inside it."""
    absolute = Path(os.path.abspath(value))
    here = Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)
