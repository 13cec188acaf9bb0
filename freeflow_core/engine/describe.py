"""Values in words, for messages that say what came."""

from __future__ import annotations

from torch import Tensor


def describe(value: object) -> str:
    """Shape, dtype and device of a tensor; parts of a dict; else the type."""
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')} on {value.device}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {describe(part)}" for key, part in value.items()) + "}"
    return "None" if value is None else f"a {type(value).__name__}"
