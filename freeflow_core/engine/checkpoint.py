"""The full training state on disk, one folder a checkpoint, complete or absent."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from freeflow_core.engine.state import TrainingState
from freeflow_core.errors import CheckpointError
from freeflow_core.files import sync_file
from freeflow_core.network_file import load_tensors, save_tensors

_STATE_FILE = "state.json"
_NAME = re.compile(r"^images-(\d{12})$")


@final
class Checkpoints:
    """The ``checkpoints`` folder of a run.

    A checkpoint is written to a hidden folder, synced, and renamed; one that has a name is whole.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def all(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(p for p in self.folder.iterdir() if _NAME.match(p.name) and (p / _STATE_FILE).is_file())

    def latest(self) -> Path | None:
        found = self.all()
        return found[-1] if found else None

    def save(self, state: TrainingState, extra: Mapping[str, Any]) -> Path:
        """Write everything. Raises :class:`CheckpointError`; older checkpoints stay as they were."""
        final_path = self.folder / f"images-{state.images:012d}"
        partial = self.folder / f".partial-{state.images:012d}"
        description = {
            "images": state.images,
            "step": state.step,
            "updates": {name: role.updates for name, role in state.roles.items()},
            **extra,
        }
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            for name, tensors in state.tensors().items():
                save_tensors(partial / f"{name}.safetensors", tensors)
            save_tensors(partial / "random.safetensors", random_state())
            _write_synced(partial / _STATE_FILE, json.dumps(description, indent=1))
            if final_path.exists():
                shutil.rmtree(final_path)
            os.replace(partial, final_path)
        except (OSError, CheckpointError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            last, reason = self.latest(), error.__cause__ or error
            raise CheckpointError(
                f"The checkpoint at image {state.images} cannot be written to {self.folder}: {reason}. "
                + (f"The last good one is {last}. " if last else "")
                + "Free some space, then go on with --resume."
            ) from error
        for old in self.all()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)
        return final_path

    def load(self, path: Path, state: TrainingState) -> None:
        """Restore ``state`` and the random generators.

        Raises:
            CheckpointError: a damaged file, or weights that do not fit; nothing was changed then.
        """
        try:
            description = json.loads((path / _STATE_FILE).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"The checkpoint {path} cannot be read: {error}.") from error
        files = {f.stem: load_tensors(f)[0] for f in sorted(path.glob("*.safetensors"))}
        random = files.pop("random", {})
        state.load(files)
        state.images, state.step = description["images"], description["step"]
        for name, count in description["updates"].items():
            if name in state.roles:
                state.roles[name].updates = count
        restore_random_state(random)


def random_state() -> dict[str, Tensor]:
    """torch's global generators; training draws do not use them, but a network with dropout would."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state |= {f"cuda{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return state


def restore_random_state(state: Mapping[str, Tensor]) -> None:
    """Undo :func:`random_state`; generators of devices that are not here are left alone."""
    if "cpu" in state:
        torch.set_rng_state(state["cpu"])
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"cuda{i}" in state:
            torch.cuda.set_rng_state(state[f"cuda{i}"], i)


def _write_synced(path: Path, text: str) -> None:
    path.write_text(text, "utf-8")
    sync_file(path)
