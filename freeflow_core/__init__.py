"""freeflow: distil flow and diffusion teachers into one-step students, without data.

Importing this package does not import torch; the names below are loaded on first use.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_API = (
    "RunResult",
    "check_teacher",
    "compare",
    "distill",
    "encode",
    "evaluate",
    "export",
    "fetch",
    "list_weights",
    "load_student",
    "load_teacher",
    "plan",
    "pretrain",
    "resolve_config",
    "sample",
    "search",
)
__all__ = ["__version__", *_API]


def __getattr__(name: str) -> Any:
    if name in _API:
        value = getattr(importlib.import_module("freeflow_core.api"), name)
        if not isinstance(value, type):  # the command line takes the functions from there, with errors in its own words
            value = importlib.import_module("freeflow_core.api.wording").speaks_python(value)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
