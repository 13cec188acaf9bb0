"""What is installed, against what this package says it needs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping

from packaging.requirements import Requirement

from freeflow_core.types import Check

OWN = "freeflow-distill"
SHOWN = ("torch", "torchvision", "accelerate", "numpy", "mlflow", "clean-fid", "torchdiffeq", "safetensors", "pydantic")
OPTIONAL = {"diffusers": "the codec sd-vae and the teacher diffusers-transformer; pip install 'freeflow-distill[vae]'"}
DEPRECATED = {
    "PYTORCH_CUDA_ALLOC_CONF": "PYTORCH_ALLOC_CONF, from torch 2.9 on",
    "NCCL_ASYNC_ERROR_HANDLING": "TORCH_NCCL_ASYNC_ERROR_HANDLING",
    "HUGGINGFACE_HUB_CACHE": "HF_HUB_CACHE",
    "TRANSFORMERS_CACHE": "HF_HOME",
}
"""Environment variables that still work somewhere, and what replaced them."""


def check_versions(environment: Mapping[str, str] = os.environ) -> list[Check]:
    """Python, the packages that matter, and variables that have another name by now."""
    needed = requirements()
    return [
        Check("python", "ok", f"{platform.python_version()} on {platform.platform()}"),
        *(check_package(name, needed.get(_normal(name))) for name in SHOWN),
        *(check_package(name, None, purpose) for name, purpose in OPTIONAL.items()),
        *check_variables(environment),
    ]


def requirements() -> dict[str, Requirement]:
    """What this distribution needs without extras, by normalised name; empty where it is not installed as one."""
    try:
        written = importlib.metadata.requires(OWN) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    parsed = [Requirement(text) for text in written]
    return {_normal(item.name): item for item in parsed if item.marker is None}


def check_package(name: str, needed: Requirement | None, purpose: str = "") -> Check:
    """One package; ``purpose`` says what an optional one is for."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        if purpose:
            return Check(name, "ok", f"not installed; needed for {purpose}")
        return Check(name, "error", f"not installed; run `pip install {OWN}` again")
    if needed is not None and not needed.specifier.contains(version, prereleases=True):
        return Check(
            name, "warning", f"{version}, but {OWN} is made for {needed.specifier}; run `pip install '{needed}'`"
        )
    return Check(name, "ok", version)


def check_variables(environment: Mapping[str, str]) -> list[Check]:
    """One warning for each variable that is set and deprecated."""
    return [
        Check(f"variable {name}", "warning", f"deprecated; set {new} instead")
        for name, new in DEPRECATED.items()
        if name in environment
    ]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
