"""Wording that several messages share."""

from __future__ import annotations

from freeflow_core.plugin import WeightFile


def data_size(num_bytes: int) -> str:
    """``512 bytes``, ``1.5 KiB``, ``2.50 GiB``."""
    if num_bytes < 1024:
        return f"{num_bytes} bytes"
    for unit, scale in (("KiB", 2**10), ("MiB", 2**20)):
        if num_bytes < 1024 * scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes / 2**30:.2f} GiB"


def bypass() -> str:
    """How to do without the cache."""
    return "name a copy of your own: --set teacher.checkpoint=PATH, and student.checkpoint or codec.checkpoint likewise"


def by_hand(weight: WeightFile) -> str:
    """What to do when no download can work; a clause without a capital or a full stop."""
    place = f" from {weight.source}" if weight.source else ""
    return f"get the file by hand{place} and run `freeflow fetch {weight.name} --from FILE`, or {bypass()}"
