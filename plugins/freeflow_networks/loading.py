"""A user's network as something to call: imported, made, or read from a file. Only in a session that is trusted."""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.util
import pickle
import sys
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.network_file import check_tensors, load_tensors
from freeflow_networks.config import CallableTeacherConfig


def make_callable(config: CallableTeacherConfig) -> Callable[..., Any]:
    """What the options name, or what that makes, with its weights.

    Raises:
        ConfigError: it cannot be imported, made or called.
        CheckpointError: weights that cannot be read or do not fit.
    """
    found = _import(config.network)
    if isinstance(found, type) or config.options is not None:
        try:
            found = found(**(config.options or {}))
        except Exception as error:
            raise ConfigError(
                f"{config.network} could not make a network of teacher.options={config.options or {}}: "
                f"{type(error).__name__}: {error}."
            ) from error
    elif isinstance(found, nn.Module):
        found = copy.deepcopy(found)  # moved and cast here; the module's own stays as it is
    if not callable(found):
        raise ConfigError(
            f"{config.network} is a {type(found).__name__}, which cannot be called; expected a function "
            "(x, t, condition), a torch module, or a class or factory that makes one."
        )
    if config.weights is not None:
        if not isinstance(found, nn.Module):
            raise ConfigError(
                f"teacher.weights is for torch modules, and {config.network} is a {type(found).__name__}."
            )
        tensors = _read_weights(config.weights)
        check_tensors(found.state_dict(), tensors, f"state dict in {config.weights}")
        found.load_state_dict(tensors)
    return found


def load_program(path: Path) -> nn.Module:
    """A program saved by ``torch.export.save`` (``.pt2``) or ``torch.jit.save``. Raises ``CheckpointError``."""
    if not path.is_file():
        raise CheckpointError(
            f"There is no file {path}. Expected a program saved by torch.export.save or torch.jit.save."
        )
    exported = path.suffix == ".pt2"
    try:
        if exported:
            loaded: nn.Module = torch.export.load(path).module()
        else:
            with warnings.catch_warnings():  # that TorchScript is going away is nothing the user can act on here
                warnings.simplefilter("ignore", DeprecationWarning)
                loaded = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    except (RuntimeError, OSError, ValueError, KeyError, AssertionError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path} cannot be read as {'an exported program' if exported else 'TorchScript'}: "
            f"{' '.join(str(error).split())[:300]}. Expected a file of torch.export.save (.pt2) or torch.jit.save (any "
            "other suffix), written by a torch no newer than this one. A state dict is no program: load it with the "
            "teacher callable and its option weights."
        ) from error
    return loaded


def _import(name: str) -> Any:
    where, _, attribute = name.rpartition(":")
    try:
        module = _import_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
        return functools.reduce(getattr, attribute.split("."), module)
    except Exception as error:
        raise ConfigError(
            f"teacher.network={name!r} cannot be imported: {type(error).__name__}: {error}. Expected module:name, with "
            "the module on PYTHONPATH or in an installed package, or path/to/file.py:name."
        ) from error


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    name = f"freeflow_network_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # a .py file always has a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _read_weights(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_tensors(path)[0]
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"The weights {path} cannot be read without running code ({' '.join(str(error).split())[:200]}). "
            "Expected a state dict as torch.save or safetensors write it."
        ) from error
    if not isinstance(values, Mapping) or not all(isinstance(value, Tensor) for value in values.values()):
        raise CheckpointError(f"The weights {path} are no state dict: expected tensors by name, and nothing else.")
    return dict(values)
