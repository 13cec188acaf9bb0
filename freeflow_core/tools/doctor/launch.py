"""Whether as many processes work together as were asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
import yaml

from freeflow_core.types import Check

_LAUNCHERS = {
    "SLURM_NTASKS": "SLURM",
    "OMPI_COMM_WORLD_SIZE": "Open MPI",
    "PMI_SIZE": "MPI",
    "MV2_COMM_WORLD_SIZE": "MVAPICH",
}
"""What a launcher that is not torch's says of the number of processes."""

_REMEDY = "start it with `torchrun --nproc_per_node N -m freeflow_cli distill ...`, or by `accelerate launch` on GPUs"


def check_launch(environment: Mapping[str, str] = os.environ) -> list[Check]:
    """Processes that joined against those asked for, and what accelerate's own configuration says."""
    return [_processes(environment), *_devices(environment), *_accelerate(environment)]


def joined_processes(environment: Mapping[str, str]) -> int:
    """How many processes a run started now would join: what ``WORLD_SIZE`` says, which torch and accelerate go by."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return _number(environment, "WORLD_SIZE") or 1


def _processes(environment: Mapping[str, str]) -> Check:
    name, joined = "distributed launch", joined_processes(environment)
    for variable, launcher in _LAUNCHERS.items():
        asked = _number(environment, variable) or 1
        # A shell on an allocation sees SLURM_NTASKS too; only srun sets a process number.
        if asked > joined and (variable != "SLURM_NTASKS" or "SLURM_PROCID" in environment):
            return Check(
                name,
                "warning",
                f"{launcher} started {asked} processes ({variable}), but each would run alone, as one of {joined}: "
                f"the same run {asked} times. {_REMEDY}",
            )
    if "ACCELERATE_MIXED_PRECISION" in environment and "WORLD_SIZE" not in environment:
        asked_for = configured_processes(environment)
        told = f"; its configuration asks for {asked_for}" if asked_for and asked_for > 1 else ""
        return Check(
            name,
            "warning",
            f"`accelerate launch` started one process{told}. On CPUs it ignores --num_processes; "
            "use `torchrun --nproc_per_node N -m freeflow_cli distill ...`.",
        )
    if joined > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
        return Check(
            name,
            "warning",
            f"WORLD_SIZE={joined} without MASTER_ADDR and MASTER_PORT: processes cannot find each other. {_REMEDY}",
        )
    return Check(name, "ok", f"{joined} process{'' if joined == 1 else 'es'}")


def _devices(environment: Mapping[str, str]) -> list[Check]:
    here, gpus = _number(environment, "LOCAL_WORLD_SIZE") or 1, torch.cuda.device_count()
    if gpus and here > gpus:
        return [
            Check(
                "processes and GPUs",
                "error",
                f"{here} processes on a machine with {gpus} GPU(s); start at most {gpus} here, or set "
                "runtime.device=cpu",
            )
        ]
    return []


def _accelerate(environment: Mapping[str, str]) -> list[Check]:
    asked, joined = configured_processes(environment), joined_processes(environment)
    if asked is None:
        return []
    if asked > joined:
        detail = f"asks for {asked} processes, which `accelerate launch` alone reads; this process is one of {joined}"
        return [Check("accelerate configuration", "warning" if joined > 1 else "ok", detail)]
    return [Check("accelerate configuration", "ok", f"asks for {asked} process{'' if asked == 1 else 'es'}")]


def configured_processes(environment: Mapping[str, str]) -> int | None:
    """``num_processes`` of accelerate's default configuration; None where there is none that can be read."""
    home = environment.get("HF_HOME") or str(
        Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    )
    file = Path(home) / "accelerate" / "default_config.yaml"
    try:
        values = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    number = values.get("num_processes") if isinstance(values, dict) else None
    return number if isinstance(number, int) else None


def _number(environment: Mapping[str, str], variable: str) -> int | None:
    text = environment.get(variable, "")
    return int(text) if text.isdecimal() else None
