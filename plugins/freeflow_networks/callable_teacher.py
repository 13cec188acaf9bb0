"""Any importable network as a teacher."""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.util
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from freeflow_core.config import ComponentConfig
from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.interfaces import BuildContext
from freeflow_core.math.conversions import Convention
from freeflow_core.network_file import check_tensors, load_tensors
from freeflow_networks.calling import DTYPES, ForeignNetwork
from freeflow_networks.config import CallableTeacherConfig
from freeflow_networks.conventions import convention_from
from freeflow_networks.converted import ConvertedTeacher, call_form, conditions_from


@final
class CallableTeacher(ConvertedTeacher):
    """A function, torch module or factory named as ``module:name`` or ``file.py:name``.

    Args:
        network, convention, sample_shape: see :class:`ConvertedTeacher`.
        name: as the user wrote it.
    """

    def __init__(
        self, network: ForeignNetwork, convention: Convention, sample_shape: tuple[int, ...], name: str
    ) -> None:
        super().__init__(network, convention, sample_shape)
        self._name = name
        self.provenance = f"the network {name}"

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        """Raises ``ConfigError`` when the session is not trusted, or the network cannot be made or asked."""
        assert isinstance(config, CallableTeacherConfig)
        context.require_trust("The teacher 'callable'", f"import and call {config.network}")
        function = _make(_import(config.network), config)
        if config.weights is not None:
            _load_weights(function, config.weights, config.network)
        network = ForeignNetwork(
            function,
            call_form(config),
            conditions_from(config),
            config.network,
            None if config.dtype is None else DTYPES[config.dtype],
        )
        teacher = cls(network, convention_from(config), config.sample_shape, config.network).to(context.device)
        if context.device.type != "meta":
            teacher.try_out(context.device)
        return teacher

    def described(self) -> str:
        return f"The network {self._name}"


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


def _make(found: Any, config: CallableTeacherConfig) -> Callable[..., Any]:
    """The network itself: what was named, or what that makes."""
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
    return found


def _load_weights(network: Any, path: Path, name: str) -> None:
    if not isinstance(network, nn.Module):
        raise ConfigError(f"teacher.weights is for torch modules, and {name} is a {type(network).__name__}.")
    tensors = _read_weights(path)
    check_tensors(network.state_dict(), tensors, f"state dict in {path}")
    network.load_state_dict(tensors)


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
