"""The full training state on disk, one folder a checkpoint, complete or absent, and verified before it is used."""

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import file_digest
from pathlib import Path
from typing import Any, final

import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError
from torch import Tensor

from freeflow_core.engine.state import TrainingState
from freeflow_core.errors import CheckpointError
from freeflow_core.files import sync_file, sync_folder
from freeflow_core.network_file import load_tensors, save_tensors

_STATE_FILE = "state.json"
_SUMS_FILE = "SHA256SUMS"
"""As ``sha256sum`` writes and checks it; written last."""
_NAME = re.compile(r"^images-(\d{12})$")
_SUM = re.compile(r"([0-9a-f]{64}) [ *]([A-Za-z0-9._-]+)")
_DAMAGED = "damaged-"
_log = logging.getLogger("freeflow")


class _Description(BaseModel):
    """``state.json``; what a caller of :meth:`Checkpoints.save` adds is kept, and not read."""

    model_config = ConfigDict(strict=True, extra="allow")

    images: NonNegativeInt
    step: NonNegativeInt
    updates: dict[str, NonNegativeInt]


@final
class Checkpoints:
    """The ``checkpoints`` folder of a run. One process writes to it.

    A checkpoint is written to a hidden folder, synced, and renamed; for its removal it is renamed first. So one that
    has a name was whole once, and by the digests of its files it is known whether it still is.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def all(self) -> list[Path]:
        """Those that have a name, oldest first, whatever has become of their files."""
        if not self.folder.is_dir():
            return []
        return sorted(p for p in self.folder.iterdir() if _NAME.match(p.name) and p.is_dir())

    def latest(self) -> Path | None:
        found = self.all()
        return found[-1] if found else None

    def newest_whole(self, *, fall_back: bool) -> Path | None:
        """The newest checkpoint, verified; None when there is none at all.

        Damaged ones are named in a warning and set aside as ``damaged-images-...``, for the newest whole one.

        Raises:
            CheckpointError: the newest one is damaged and there is to be no ``fall_back``, or none is whole.
        """
        found = self.all()
        damaged: dict[Path, str] = {}
        for path in reversed(found):
            if (problem := damage(path)) is None:
                self._set_aside(damaged, path)
                return path
            damaged[path] = problem
            if not fall_back:
                raise CheckpointError(
                    f"The newest checkpoint {path} is damaged: {problem}. Put a good copy there, or give --set "
                    "checkpointing.fall_back=true to go on from the newest whole one."
                )
        if damaged:
            raise CheckpointError(
                f"No checkpoint in {self.folder} is whole. "
                + "; ".join(f"{path.name}: {problem}" for path, problem in damaged.items())
                + ". Put a good copy there, or start a new run with another --output."
            )
        return None

    def clear(self) -> None:
        """Remove what a killed process was writing or removing."""
        for left in self.folder.glob(".*") if self.folder.is_dir() else ():
            shutil.rmtree(left, ignore_errors=True)

    def save(self, state: TrainingState, extra: Mapping[str, Any]) -> Path:
        """Write everything. Raises :class:`CheckpointError`; older checkpoints stay as they were."""
        path = self.folder / f"images-{state.images:012d}"
        partial = self.folder / f".partial-{state.images:012d}"
        if path.exists() and damage(path) is None:
            return path  # the same state, of this run before it went on from an older one
        description = {
            **extra,
            "images": state.images,
            "step": state.step,
            "updates": {name: role.updates for name, role in state.roles.items()},
        }
        try:
            self.folder.mkdir(exist_ok=True)  # not its parents: a run whose folder was removed does not bring it back
            self.clear()
            partial.mkdir()
            for name, tensors in state.tensors().items():
                save_tensors(partial / f"{name}.safetensors", tensors)
            save_tensors(partial / "random.safetensors", random_state())
            _write_synced(partial / _STATE_FILE, json.dumps(description, indent=1))
            sums = "".join(f"{digest}  {name}\n" for name, digest in _digests(partial).items())
            _write_synced(partial / _SUMS_FILE, sums)
            sync_folder(partial)
            if path.exists():
                self._remove(path)
            os.replace(partial, path)
            sync_folder(self.folder)
        except (OSError, CheckpointError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            last, reason = self.latest(), error.__cause__ or error
            raise CheckpointError(
                f"The checkpoint at image {state.images} cannot be written to {self.folder}: {reason}. "
                + (f"The last good one is {last}. " if last else "")
                + "Free some space, then go on with --resume."
            ) from error
        for old in self.all()[: -self.keep]:
            self._remove(old)
        return path

    def load(self, path: Path, state: TrainingState) -> None:
        """Restore ``state`` and the random generators.

        Raises:
            CheckpointError: a damaged file, or weights that do not fit; nothing was changed then.
        """
        try:
            description = _Description.model_validate_json((path / _STATE_FILE).read_bytes())
        except OSError as error:
            raise CheckpointError(f"The checkpoint {path} cannot be read: {error}.") from error
        except ValidationError as error:
            raise CheckpointError(
                f"{path / _STATE_FILE} does not say how far the run had come: expected images, step and updates. "
                "Put a good copy there, or remove this checkpoint to go on from an older one."
            ) from error
        files = {f.stem: load_tensors(f)[0] for f in sorted(path.glob("*.safetensors"))}
        random = files.pop("random", {})
        state.load(files)
        state.images, state.step = description.images, description.step
        for name, count in description.updates.items():
            if name in state.roles:
                state.roles[name].updates = count
        restore_random_state(random)

    def _set_aside(self, damaged: Mapping[Path, str], used: Path) -> None:
        for path, problem in damaged.items():
            aside = path.with_name(f"{_DAMAGED}{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(path, aside)
            _log.warning(
                f"The checkpoint {path} is damaged: {problem}. It was set aside as {aside.name}. The run goes on from "
                f"the newest whole one, {used.name}: what was trained since is trained again."
            )

    def _remove(self, path: Path) -> None:
        """Renamed first: a kill on the way leaves nothing that has a name."""
        doomed = path.with_name(f".removed-{path.name}")
        if doomed.exists():
            shutil.rmtree(doomed, ignore_errors=True)
        os.replace(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def damage(path: Path) -> str | None:
    """What is wrong with the files of a checkpoint, by the digests that were written with it; None: nothing."""
    try:
        text = (path / _SUMS_FILE).read_text("ascii")
    except FileNotFoundError:
        return (
            f"it has no {_SUMS_FILE}, so it is incomplete, or of an early version that wrote none (if you know that it "
            f"is whole, run in it: sha256sum *.safetensors {_STATE_FILE} > {_SUMS_FILE})"
        )
    except (OSError, ValueError) as error:
        return f"{_SUMS_FILE} cannot be read ({error})"
    matches = [_SUM.fullmatch(line) for line in text.split("\n")[:-1]]
    expected = {match[2]: match[1] for match in matches if match is not None}
    if len(expected) < len(matches) or _STATE_FILE not in expected or not text.endswith("\n"):
        return f"{_SUMS_FILE} is no list of digests"
    try:
        found = _digests(path)
    except OSError as error:
        return f"it cannot be read ({error})"
    if missing := sorted(expected.keys() - found.keys()):
        return f"{', '.join(missing)} missing"
    if changed := sorted(name for name, digest in found.items() if expected.get(name) != digest):
        return f"{', '.join(changed)} not as written"
    return None


def _digests(path: Path) -> dict[str, str]:
    """SHA-256 by name of the files that make a checkpoint, in the order of their names."""
    files = sorted([*path.glob("*.safetensors"), *path.glob(_STATE_FILE)])

    def digest(file: Path) -> str:
        with file.open("rb") as opened:
            return file_digest(opened, "sha256").hexdigest()

    with ThreadPoolExecutor(4) as threads:  # hashing leaves Python's lock
        return dict(zip([file.name for file in files], threads.map(digest, files), strict=True))


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
