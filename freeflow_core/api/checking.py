"""Whether a teacher is read as its network means it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from freeflow_core.config import ComponentChoice, RuntimeConfig
from freeflow_core.config.load import lay_settings, merge, read_config_file
from freeflow_core.engine.build import DTYPES, Builder
from freeflow_core.engine.process import autocast, choose_device
from freeflow_core.errors import ConfigError
from freeflow_core.evaluation.pictures import grid_image, save_image, scatter_image
from freeflow_core.interfaces import Codec
from freeflow_core.plugin import Manager, Registry
from freeflow_core.teacher_check import check_built_teacher
from freeflow_core.teacher_proposals import Proposal
from freeflow_core.types import Check

_COLUMNS = 8


@dataclass(frozen=True)
class TeacherCheck:
    """What :func:`check_teacher` found. ``proposals`` are other conventions that fit, the best first."""

    teacher: str
    checks: tuple[Check, ...]
    proposals: tuple[Proposal, ...]
    file: Path | None

    @property
    def is_right(self) -> bool:
        return not any(check.status == "error" for check in self.checks)


def check_teacher(
    teacher: str | None = None,
    *,
    config_file: Path | None = None,
    settings: Iterable[str] = (),
    num: int | None = None,
    steps: int = 16,
    seed: int = 0,
    device: str = "auto",
    precision: str = "float32",
    output: Path | None = None,
    manager: Manager | None = None,
) -> TeacherCheck:
    """Integrate a teacher from noise to data and measure whether it is the velocity of its own samples' path.

    Where it is not, and its convention is a matter of options, other conventions are tried and those that fit proposed.

    Args:
        teacher: its name; None: as ``config_file`` says.
        config_file: a file with a section ``teacher``, such as a run's configuration; of the rest ``codec`` counts.
        settings: ``teacher.option=value`` and ``codec.option=value`` strings.
        num: samples; None: 16, and more of small states.
        steps: midpoint steps of the integration, two passes each.
        precision: ``"bf16"`` autocasts the network; the states stay float32.
        output: folder for the samples: a picture, or an array where they are no images; None writes nothing.

    Raises:
        ConfigError: no teacher named, or one that cannot be built; ``CheckpointError`` likewise.
    """
    if num is not None and num < 2:
        raise ConfigError(f"The check needs at least 2 samples, got {num}.")
    manager = manager or Manager.load()
    written = read_config_file(config_file) if config_file is not None else {}
    parts: dict[str, Any] = {"teacher": {}, "codec": {"name": "pixels"}}
    parts = merge(parts, {kind: written[kind] for kind in parts if written.get(kind) is not None})
    parts = lay_settings(merge(parts, {"teacher": teacher} if teacher is not None else {}), settings, closed=True)
    if not parts["teacher"].get("name"):
        raise ConfigError("There is no teacher to check. Give --teacher NAME, or --config FILE with one in it.")
    choices = {kind: ComponentChoice.model_validate(choice) for kind, choice in parts.items()}
    runtime = RuntimeConfig.model_validate({"device": device, "precision": precision})
    chosen = choose_device(runtime)
    builder = Builder(Registry(manager), chosen, seed, precision)
    built = builder.teacher(choices["teacher"]).to(DTYPES[precision])
    with autocast(chosen, precision):
        report = check_built_teacher(built, num=num, num_steps=steps, seed=seed, device=chosen)
    file = None
    if output is not None and report.samples is not None:
        file = _write(report.samples, builder.build("codec", choices["codec"], teacher=built), output)
    return TeacherCheck(choices["teacher"].name, report.checks, report.proposals, file)


def _write(samples: Tensor, codec: Codec, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    samples = samples[:1024].float().cpu()
    finite = bool(torch.isfinite(samples).all())
    if finite and samples.ndim == 4 and samples.shape[1] in (1, 3, 4, 16):
        path = folder / "samples.png"
        save_image(grid_image(codec.decode(samples[: _COLUMNS**2]).cpu(), _COLUMNS), path)
    elif finite and samples.shape[1:] == (2,):
        path = folder / "samples.png"
        save_image(scatter_image([("samples", samples)]), path)
    else:
        path = folder / "samples.npz"
        np.savez(path, arr_0=samples.numpy())
    return path
