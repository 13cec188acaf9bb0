"""Anybody's network, imported, made or read from a file, with the convention that the user states: a teacher."""

import contextlib
import copy
import functools
import importlib
import importlib.util
import logging
import pickle
import sys
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from freeflow_core.errors import CheckpointError, ConfigError, FreeflowError
from freeflow_core.interfaces import BuildContext, ConvertibleTeacher
from freeflow_core.math.conversions import Convention, Prediction, Sign, TimeDirection, ask, velocity_of
from freeflow_core.math.derivative import full_precision
from freeflow_core.math.schedules import named_schedule
from freeflow_core.network_file import check_tensors, load_tensors
from freeflow_core.types import Condition
from freeflow_networks.calling import Conditions, ForeignNetwork, read_embeddings
from freeflow_networks.config import CallableTeacherConfig, ConventionOptions, OwnNetworkOptions, TorchFileTeacherConfig

_log = logging.getLogger("freeflow")


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
            raise ConfigError(f"teacher.weights is for torch modules; {config.network} is a {type(found).__name__}.")
        tensors = _without_prefix(_read_weights(config.weights, config.weights_key), found.state_dict())
        check_tensors(found.state_dict(), tensors, f"state dict in {config.weights}")
        found.load_state_dict(tensors)
    return found


def load_program(path: Path) -> nn.Module:
    """A program saved by ``torch.export.save`` (``.pt2``) or ``torch.jit.save``. Raises ``CheckpointError``."""
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}. Expected a program of torch.export.save or torch.jit.save.")
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


def _read_weights(path: Path, key: str | None) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_tensors(path)[0]
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"The weights {path} cannot be read without running code ({' '.join(str(error).split())[:200]}). "
            "Expected a state dict as torch.save or safetensors write it. Where you trust the file, write the part "
            "that is needed anew: torch.save(torch.load(FILE, weights_only=False)[KEY], 'weights.pt')."
        ) from error
    for part in () if key is None else key.split("."):
        if not isinstance(values, Mapping) or part not in values:
            raise CheckpointError(f"{path} has no {key!r} (teacher.weights_key): there {_held(values)}.")
        values = values[part]
    if not isinstance(values, Mapping) or not values or not all(isinstance(v, Tensor) for v in values.values()):
        where = f" at {key!r}" if key else ""
        raise CheckpointError(
            f"The weights {path} are no state dict{where}: expected tensors by name, and nothing else; there "
            f"{_held(values)}. Name the part that is one with teacher.weights_key."
        )
    return dict(values)


def _held(values: Any) -> str:
    if not isinstance(values, Mapping):
        return f"is one {type(values).__name__}"
    shown = ", ".join(f"{name!r} ({type(value).__name__})" for name, value in list(values.items())[:8])
    return f"are {shown}{', ...' if len(values) > 8 else ''}" if values else "is nothing"


def _without_prefix(tensors: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Under the network's own names, where the file's have one prefix more: DataParallel, compiled, AveragedModel."""
    name, tensors = next(iter(own), ""), {k: v for k, v in tensors.items() if k != "n_averaged" or k in own}
    for found in [other for other in tensors if other.endswith(f".{name}")]:
        prefix = found.removesuffix(name)
        if {f"{prefix}{wanted}" for wanted in own} == set(tensors):
            _log.info(f"The names of the weights begin with {prefix!r}, which is left out.")
            return {other.removeprefix(prefix): tensor for other, tensor in tensors.items()}
    return tensors


@final
class OwnNetworkTeacher(ConvertibleTeacher):
    """v(x_t, t, c) of a network read with ``convention``. Conditions are (N,) labels, or None.

    Outside the convention's time range the field is continued constantly in t. Where the answer is divided by a small
    number near an end (a prediction of data, noise or score), autocast and TF32 are off.
    """

    def __init__(self, network: ForeignNetwork, convention: Convention, sample_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.network = network
        self.convention = convention
        self.sample_shape = tuple(sample_shape)
        self.time_range = convention.time_range
        self.num_classes = network.conditions.num_classes
        self.provenance = network.name[0].lower() + network.name[1:]

    @classmethod
    def from_config(cls, config: CallableTeacherConfig | TorchFileTeacherConfig, context: BuildContext) -> Self:
        """Raises ``ConfigError`` when the session is not trusted, or the network cannot be made or asked,
        ``CheckpointError`` for a file that holds none."""
        if isinstance(config, CallableTeacherConfig):
            context.require_trust("The teacher 'callable'", f"import and call {config.network}")
            network = ForeignNetwork(
                make_callable(config), config, conditions_from(config), f"The network {config.network}"
            )
        else:
            context.require_trust("The teacher 'torch-file'", f"run the program in {config.file}")
            name = f"The program in {config.file}"
            network = ForeignNetwork(load_program(config.file), config, conditions_from(config), name, is_program=True)
        teacher = cls(network, convention_from(config), config.sample_shape).to(context.device)
        if context.device.type != "meta":
            teacher.try_out(context.device)
        return teacher

    def velocity(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        x = x_t.to(torch.promote_types(x_t.dtype, torch.float32)) if self.convention.amplifies else x_t
        question = ask(self.convention, x, t)
        with full_precision(x) if self.convention.amplifies else contextlib.nullcontext():
            answer = self.network(question.x, question.time, condition)
        return velocity_of(self.convention, answer, x, question.t).to(x_t.dtype)

    def student_copy(self, *, share_weights: bool) -> Self:
        copied = super().student_copy(share_weights=share_weights)
        if not share_weights:
            copied.network.train_in_full()
        return copied

    @property
    def own_network(self) -> nn.Module:
        function = self.network.function
        if self.network.is_program:
            raise ConfigError(
                f"{self.network.name[0].upper()}{self.network.name[1:]} is a saved program, whose modules cannot be "
                "added to. Give the network's code as the teacher `callable`, with its weights, to wrap it."
            )
        if not isinstance(function, nn.Module):
            raise ConfigError(
                f"{self.network.name} is a {type(function).__name__}, no torch module: it has no weights to train. "
                "Name the module, or a class or factory of one, as teacher.network."
            )
        return function

    def with_convention(self, convention: Convention) -> Self:
        other = copy.copy(self)
        other._modules = dict(self._modules)
        other.convention = convention
        other.time_range = convention.time_range
        return other

    def null_condition(self, condition: Condition) -> Condition:
        if not isinstance(condition, Tensor):
            raise ConfigError("This teacher is unconditional, so it cannot be guided; use a guidance weight of 1.")
        return self.network.conditions.null(condition)

    @torch.no_grad()
    def try_out(self, device: torch.device) -> None:
        """Ask the network about two and about three states, so that what does not fit shows before anything starts.

        Raises:
            ConfigError: it fails, or its answer is not like the states.
        """
        for num in (2, 3):
            x = torch.randn(num, *self.sample_shape, generator=torch.Generator().manual_seed(0)).to(device)
            t = torch.full((num,), 0.5, dtype=torch.float64)
            try:
                self.velocity(x, t, self.balanced_condition(torch.arange(num)))
            except FreeflowError:
                raise
            except Exception as error:
                hint = "; an exported program needs a dynamic first dimension" if self.network.is_program else ""
                raise ConfigError(
                    f"{self.network.name} failed when it was asked about {num} states {tuple(x.shape)}: "
                    f"{type(error).__name__}: {' '.join(str(error).split())[:300]}. It is called as "
                    "f(x (N, *D), t (N,), condition (N, ...)) unless teacher.arguments, condition_argument and "
                    f"keywords say otherwise, and must take any N{hint}."
                ) from error


def convention_from(options: ConventionOptions) -> Convention:
    """What the options say."""
    return Convention(
        prediction=Prediction(options.prediction),
        time_direction=TimeDirection(options.time_direction),
        sign=None if options.sign is None else Sign(options.sign),
        schedule=named_schedule(
            options.schedule, num_steps=options.num_steps, start=options.schedule_start, end=options.schedule_end
        ),
        schedule_name=options.schedule,
        time_scale=options.time_scale,
        time_offset=options.time_offset,
        output_scale=options.output_scale,
        data_std=options.data_std,
        low=options.time_low,
        high=options.time_high,
    )


def conditions_from(options: OwnNetworkOptions) -> Conditions:
    """What the options say the network is conditioned on. Raises ``ConfigError`` for a file that does not fit."""
    if options.embeddings is None:
        return Conditions(options.num_classes, options.null_label)
    conditions = read_embeddings(options.embeddings)
    if len(conditions.names) > 1 and options.condition_argument is not None:
        raise ConfigError(
            f"{options.embeddings} holds several tensors ({', '.join(conditions.names)}), which are passed by their "
            "own names. Leave teacher.condition_argument out."
        )
    return conditions
