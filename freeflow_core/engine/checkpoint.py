"""The full training state on disk, one folder a checkpoint, complete or absent, and verified before it is used."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import file_digest
from pathlib import Path
from typing import Any, final

import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError
from torch import Tensor

from freeflow_core.engine.optimizer import host_copy
from freeflow_core.engine.process import Crew, Process, from_each, from_main, on_each
from freeflow_core.engine.state import TrainingState
from freeflow_core.errors import CheckpointError
from freeflow_core.files import sync_file, sync_folder
from freeflow_core.network_file import load_tensors, save_tensors

_STATE_FILE = "state.json"
_RANDOM = "random"
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
    divided: list[str] | None = None
    """What the files that all processes wrote hold; None: each is in a file of its name, by one process."""


@final
class Checkpoints:
    """The ``checkpoints`` folder of a run. One process writes to it; all do where networks are divided among them.

    A checkpoint is written to a hidden folder, synced, and renamed; for its removal it is renamed first. So one that
    has a name was whole once, and by the digests of its files it is known whether it still is.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        self._images, self._path = 0, folder
        self._writing: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1)

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

    def save(
        self, state: TrainingState, extra: Mapping[str, Any], process: Process | None = None, *, wait: bool = True
    ) -> Path:
        """Write everything; older checkpoints stay as they were. For all processes of a run together.

        Args:
            extra: kept in ``state.json``.
            process: this one; None: alone.
            wait: False: a copy is written while training goes on, and :meth:`saved` says when it is there.

        Returns:
            Where it is, or will be.

        Raises:
            CheckpointError: it cannot be written; on every process.
        """
        process = process or Crew()
        self._images, self._path = state.images, self.folder / f"images-{state.images:012d}"
        path, partial = self._path, self.folder / f".partial-{state.images:012d}"
        try:
            needed = from_main(process, lambda: self._begin(path, partial))
        except OSError as error:
            raise self._failed(error) from error
        sharding = state.sharding
        copied = sharding.host_copy if sharding is not None else None if wait else host_copy
        files = state.tensors(copied) if needed and (process.is_main_process or sharding is not None) else {}
        description = {
            **extra,
            "images": state.images,
            "step": state.step,
            "updates": {name: role.updates for name, role in state.roles.items()},
            "divided": None if sharding is None else list(files),
        }
        random = random_state()

        def write() -> None:
            if not needed:
                return
            if sharding is None:
                for name, tensors in files.items():
                    save_tensors(partial / f"{name}.safetensors", tensors)
                sums = _digests(partial / f"{name}.safetensors" for name in files)
            else:
                sums = sharding.from_writers(_digests(sharding.write(partial, files)))
            if process.is_main_process:
                self._complete(path, partial, sums, random, description)

        self._writing = self._thread.submit(write)
        if wait:
            self.saved(process)
        return path

    def saved(self, process: Process | None = None, *, wait: bool = True) -> Path | None:
        """What :meth:`save` began and is there now, told once; None for nothing. For all processes together.

        Raises :class:`CheckpointError`, on every process, when it could not be written.
        """
        process, writing = process or Crew(), self._writing
        if writing is None or not (wait or all(from_each(process, [writing.done()]))):
            return None
        self._writing = None

        def result() -> None:
            try:
                writing.result()
            except (OSError, CheckpointError) as error:
                raise self._failed(error) from error

        on_each(process, result)
        return self._path

    def close(self) -> None:
        """Wait for what is being written."""
        self._thread.shutdown()

    def _begin(self, path: Path, partial: Path) -> bool:
        """Make the folder that is written to; False where the very state is there: of this run, before it went on
        from an older one."""
        if path.exists() and damage(path) is None:
            return False
        self.folder.mkdir(exist_ok=True)  # not its parents: a run whose folder was removed does not bring it back
        self.clear()
        partial.mkdir()
        return True

    def _complete(
        self,
        path: Path,
        partial: Path,
        sums: Mapping[str, str],
        random: Mapping[str, Tensor],
        description: Mapping[str, Any],
    ) -> None:
        """The rest of the files, their digests last; the name; then the oldest ones go."""
        save_tensors(partial / f"{_RANDOM}.safetensors", random)
        _write_synced(partial / _STATE_FILE, json.dumps(description, indent=1))
        sums = {**sums, **_digests([partial / f"{_RANDOM}.safetensors", partial / _STATE_FILE])}
        _write_synced(partial / _SUMS_FILE, "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))
        sync_folder(partial)
        if path.exists():
            self._remove(path)
        os.replace(partial, path)
        sync_folder(self.folder)
        for old in self.all()[: -self.keep]:
            self._remove(old)

    def _failed(self, error: Exception) -> CheckpointError:
        shutil.rmtree(self.folder / f".partial-{self._images:012d}", ignore_errors=True)
        last, reason = self.latest(), error.__cause__ or error
        return CheckpointError(
            f"The checkpoint at image {self._images} cannot be written to {self.folder}: {reason}. "
            + (f"The last good one is {last}. " if last else "")
            + "Free some space, then go on with --resume."
        )

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
        sharding, layout = state.sharding, state.layout()
        files: dict[str, dict[str, Tensor]] = {}
        if description.divided is None:
            for file in sorted(path.glob("*.safetensors")):
                tensors, own = load_tensors(file)[0], layout.get(file.stem, {})
                files[file.stem] = {
                    name: tensor if sharding is None else sharding.share(tensor, own.get(name))
                    for name, tensor in tensors.items()
                }
            random = files.pop(_RANDOM, {})
        else:
            from freeflow_core.engine.sharding import read

            files, random = read(path, description.divided, layout), load_tensors(path / f"{_RANDOM}.safetensors")[0]
        try:
            state.load(files)
        except CheckpointError as error:
            raise CheckpointError(
                f"{path}: {error} Go on with the configuration, plugins and teacher that it was written with, or start "
                "a new run with another --output."
            ) from error
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
        found = _digests([*path.glob("*.safetensors"), *path.glob(_STATE_FILE)])
    except OSError as error:
        return f"it cannot be read ({error})"
    if missing := sorted(expected.keys() - found.keys()):
        return f"{', '.join(missing)} missing"
    if changed := sorted(name for name, digest in found.items() if expected.get(name) != digest):
        return f"{', '.join(changed)} not as written"
    return None


def _digests(files: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of files by their names."""
    listed = list(files)

    def digest(file: Path) -> str:
        with file.open("rb") as opened:
            return file_digest(opened, "sha256").hexdigest()

    with ThreadPoolExecutor(4) as threads:  # hashing leaves Python's lock
        return dict(zip([file.name for file in listed], threads.map(digest, listed), strict=True))


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
