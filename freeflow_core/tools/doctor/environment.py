"""What is installed, against what this package needs; and whether as many processes work together as were asked for."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path

import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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

_LAUNCHERS = {
    "SLURM_NTASKS": "SLURM",
    "OMPI_COMM_WORLD_SIZE": "Open MPI",
    "PMI_SIZE": "MPI",
    "MV2_COMM_WORLD_SIZE": "MVAPICH",
}
"""What a launcher that is not torch's says of the number of processes."""

_REMEDY = "start it with `torchrun --nproc_per_node N -m freeflow_cli distill ...`, or by `accelerate launch` on GPUs"


def check_versions(environment: Mapping[str, str] = os.environ) -> list[Check]:
    """Python, the packages that matter, and variables that have another name by now."""
    needed = requirements()
    return [
        Check("python", "ok", f"{platform.python_version()} on {platform.platform()}"),
        *(check_package(name, needed.get(canonicalize_name(name))) for name in SHOWN),
        *(check_package(name, None, purpose) for name, purpose in OPTIONAL.items()),
        *(
            Check(f"variable {name}", "warning", f"deprecated; set {new} instead")
            for name, new in DEPRECATED.items()
            if name in environment
        ),
    ]


def requirements() -> dict[str, Requirement]:
    """What this distribution needs without extras, by normalised name; empty where it is not installed as one."""
    try:
        written = importlib.metadata.requires(OWN) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    parsed = [Requirement(text) for text in written]
    return {canonicalize_name(item.name): item for item in parsed if item.marker is None}


def check_package(name: str, needed: Requirement | None, purpose: str = "") -> Check:
    """One package; ``purpose`` says what an optional one is for."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        if purpose:
            return Check(name, "ok", f"not installed; needed for {purpose}")
        return Check(name, "error", f"not installed; run `pip install {OWN}` again")
    if needed is not None and not needed.specifier.contains(version, prereleases=True):
        told = f"{version}, but {OWN} is made for {needed.specifier}; run `pip install '{needed}'`"
        return Check(name, "warning", told)
    return Check(name, "ok", version)


def check_launch(environment: Mapping[str, str] = os.environ) -> list[Check]:
    """Processes that joined against those asked for, and what accelerate's own configuration says."""
    joined, configured = joined_processes(environment), configured_processes(environment)
    problem = _launch_problem(environment, joined, configured)
    told = Check("distributed launch", "warning" if problem else "ok", problem or _processes(joined))
    checks = [told]
    here, gpus = _number(environment, "LOCAL_WORLD_SIZE") or 1, torch.cuda.device_count()
    if gpus and here > gpus:
        detail = f"{here} processes on a machine with {gpus} GPU(s); start at most {gpus} here, or set "
        checks.append(Check("processes and GPUs", "error", f"{detail}runtime.device=cpu"))
    name = "accelerate configuration"
    if configured is not None and configured > joined:
        detail = f"asks for {_processes(configured)}, which `accelerate launch` alone reads; this process is one of "
        checks.append(Check(name, "warning" if joined > 1 else "ok", f"{detail}{joined}"))
    elif configured is not None:
        checks.append(Check(name, "ok", f"asks for {_processes(configured)}"))
    return checks


def joined_processes(environment: Mapping[str, str]) -> int:
    """How many processes a run started now would join: what ``WORLD_SIZE`` says, which torch and accelerate go by."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return _number(environment, "WORLD_SIZE") or 1


def _launch_problem(environment: Mapping[str, str], joined: int, configured: int | None) -> str | None:
    for variable, launcher in _LAUNCHERS.items():
        asked = _number(environment, variable) or 1
        # A shell on an allocation sees SLURM_NTASKS too; only srun sets a process number.
        if asked > joined and (variable != "SLURM_NTASKS" or "SLURM_PROCID" in environment):
            return (
                f"{launcher} started {asked} processes ({variable}), but each would run alone, as one of {joined}: "
                f"the same run {asked} times. {_REMEDY}"
            )
    if "ACCELERATE_MIXED_PRECISION" in environment and "WORLD_SIZE" not in environment:
        told = f"; its configuration asks for {configured}" if configured and configured > 1 else ""
        return (
            f"`accelerate launch` started one process{told}. On CPUs it ignores --num_processes; "
            "use `torchrun --nproc_per_node N -m freeflow_cli distill ...`."
        )
    if joined > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
        return f"WORLD_SIZE={joined} without MASTER_ADDR and MASTER_PORT: processes cannot find each other. {_REMEDY}"
    return None


def configured_processes(environment: Mapping[str, str]) -> int | None:
    """``num_processes`` of accelerate's default configuration; None where there is none that can be read."""
    cache = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    file = Path(environment.get("HF_HOME") or cache / "huggingface") / "accelerate" / "default_config.yaml"
    try:
        values = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    number = values.get("num_processes") if isinstance(values, dict) else None
    return number if isinstance(number, int) else None


def _number(environment: Mapping[str, str], variable: str) -> int | None:
    text = environment.get(variable, "")
    return int(text) if text.isdecimal() else None


def _processes(number: int) -> str:
    return "1 process" if number == 1 else f"{number} processes"
