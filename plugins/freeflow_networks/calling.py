"""One call of somebody else's network: its conditions, its arguments as it wants them, its answer like the state."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, final

import numpy as np
import torch
from torch import Tensor, nn

from freeflow_core.errors import ConfigError
from freeflow_core.network_file import load_tensors
from freeflow_networks.config import OwnNetworkOptions

NEGATIVE = "negative_"


class Conditions(nn.Module):
    """No condition, (N,) labels, or the rows of a table of embeddings.

    Args:
        num_classes: conditions to draw from; None: the network is unconditional.
        null_label: the label of no condition; None: there is none, and no guidance.
        table: tensors (K, ...) by argument name, with a last row K where ``null_label`` is K; empty: labels as such.
    """

    def __init__(
        self, num_classes: int | None = None, null_label: int | None = None, table: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.null_label = null_label
        self.names = tuple(table or {})
        for name, rows in (table or {}).items():
            self.register_buffer(f"table_{name}", rows, persistent=False)

    def null(self, labels: Tensor) -> Tensor:
        """The unconditional counterpart of ``labels`` (N,). Raises ``ConfigError`` when there is none."""
        if self.null_label is None:
            remedy = (
                f"add tensors {NEGATIVE}NAME (1, ...) to the file of embeddings"
                if self.names
                else "name the unconditional label with teacher.null_label, if the network was trained with one"
            )
            raise ConfigError(
                f"This teacher has no unconditional counterpart of its conditions, so it cannot be guided: {remedy}, "
                "or use a guidance weight of 1."
            )
        return torch.full_like(labels, self.null_label)

    def rows(self, labels: Tensor, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """The embeddings of ``labels`` (N,) by name, floating ones as ``dtype``."""
        tables = {name: self.get_buffer(f"table_{name}") for name in self.names}
        found = {name: rows[labels.to(rows.device, non_blocking=True)].to(device) for name, rows in tables.items()}
        return {name: rows.to(dtype) if rows.is_floating_point() else rows for name, rows in found.items()}


def read_embeddings(path: Path, expected: tuple[str, ...] = ()) -> Conditions:
    """A table of conditions from a file.

    It is ``.safetensors``, or ``.npz`` without pickled objects; with ``expected`` names these and no others.

    Raises:
        ConfigError: not such a file, or tensors that do not belong together.
        CheckpointError: a damaged ``.safetensors`` file.
    """
    return conditions_of(_read(path), str(path), expected)


def conditions_of(tensors: Mapping[str, Tensor], path: str, expected: tuple[str, ...] = ()) -> Conditions:
    """The table in ``tensors``; ``path`` is for errors. Raises ``ConfigError`` as :func:`read_embeddings` does."""
    positive = {name: rows for name, rows in tensors.items() if not name.startswith(NEGATIVE)}
    negative = {name.removeprefix(NEGATIVE): rows for name, rows in tensors.items() if name.startswith(NEGATIVE)}
    if expected and set(positive) != set(expected):
        raise ConfigError(
            f"{path} holds the tensors {', '.join(sorted(tensors)) or '(none)'}; expected {', '.join(expected)}, and "
            f"for guidance the same with {NEGATIVE} before their names."
        )
    lengths = {len(rows) if rows.ndim else 0 for rows in positive.values()}
    if len(lengths) != 1 or 0 in lengths:
        shapes = ", ".join(f"{name} {tuple(rows.shape)}" for name, rows in sorted(positive.items()))
        raise ConfigError(f"{path} must hold tensors: a row a condition, equally many in each; got {shapes or 'none'}.")
    num = lengths.pop()
    if not negative:
        return Conditions(num, None, positive)
    needed = {(name, (1, *rows.shape[1:])) for name, rows in positive.items()}
    if wrong := {name for name, _ in needed ^ {(name, tuple(rows.shape)) for name, rows in negative.items()}}:
        raise ConfigError(
            f"The null condition in {path} does not fit: for each tensor NAME (K, ...) expected {NEGATIVE}NAME "
            f"(1, ...) of the same further dimensions; wrong or missing: {', '.join(sorted(wrong))}."
        )
    table = {name: torch.cat([rows, negative[name].to(rows.dtype)]) for name, rows in positive.items()}
    return Conditions(num, num, table)


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"The embeddings {path} cannot be read: {error}. Expected plain arrays.") from error
    if path.suffix != ".safetensors":
        raise ConfigError(f"The embeddings {path} are of an unknown kind; expected a .safetensors or .npz file.")
    return load_tensors(path)[0]


DTYPES = {"float32": torch.float32, "float64": torch.float64, "bf16": torch.bfloat16, "float16": torch.float16}


class KeepsDtype(nn.Module):
    """Base: moves with the run, but converts its tensors only where their dtype is no part of the network."""

    _keeps_dtype = False

    def keep_dtype(self, wanted: torch.dtype | None, own: torch.dtype | None, *, always: bool = False) -> None:
        """Stay as it is in a run of another precision: it was asked to, or it is of 16 bits."""
        self._keeps_dtype = always or wanted is not None or own in (torch.bfloat16, torch.float16)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = (lambda tensor: fn(tensor).to(tensor.dtype)) if self._keeps_dtype else fn
        return super()._apply(kept, recurse)  # type: ignore[no-untyped-call]


@final
class ForeignNetwork(KeepsDtype):
    """A frozen network with its conditions, in evaluation mode whatever the run asks for.

    With the option ``dtype`` None it follows a run from float32 to float64 and back; 16 bits stay so. ``name`` is for
    errors; ``is_program`` says that it is a saved program, whose dtype is part of it (and that may refuse ``eval()``).
    """

    def __init__(
        self,
        function: Callable[..., Any],
        options: OwnNetworkOptions,
        conditions: Conditions,
        name: str,
        *,
        is_program: bool = False,
    ) -> None:
        super().__init__()
        self.conditions = conditions
        self.name = name
        self.is_program = is_program
        self._options = options
        self._function = function  # registered by torch where it is a module
        dtype = None if options.dtype is None else DTYPES[options.dtype]
        if isinstance(function, nn.Module):
            for parameter in function.parameters():  # TorchScript has no requires_grad_ of its own
                parameter.requires_grad_(False)
            if not is_program:
                function.eval()
            if dtype is not None:
                function.to(dtype)
        self._wanted = dtype
        self.keep_dtype(dtype, self._own_dtype(), always=is_program)

    @property
    def function(self) -> Any:
        """What is called."""
        return self._function

    def train_in_full(self) -> None:
        """Follow the run's precision from now on, with weights of 32 bits at least: to be trained."""
        self._wanted, self._keeps_dtype = None, self.is_program
        if isinstance(self._function, nn.Module) and not self.is_program:
            self._function.to(torch.promote_types(self._own_dtype() or torch.float32, torch.float32))

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        """The answer (N, *D) for own states ``x`` (N, *D), own times (N,) and labels (N,).

        Raises ``ConfigError`` for an answer that is not like the state.
        """
        dtype = self._wanted or self._own_dtype() or x.dtype
        time = time.to(x.device)
        values: dict[str, Any] = {
            "x": x.to(dtype),
            "t": time.round().long() if self._options.time_type == "int" else time.to(dtype),
        }
        keywords = dict(self._options.keywords)
        if labels is not None and self.conditions.num_classes is not None:
            keywords |= self._place_condition(values, labels, x.device, dtype)
        positional = [values[name] for name in self._options.arguments if name in values]
        return self._checked(self._function(*positional, **keywords), x).to(x.dtype)

    def train(self, mode: bool = True) -> Self:
        """Nothing: a teacher's network never trains, and exported programs refuse to be asked."""
        self.training = False
        return self

    def _place_condition(
        self, values: dict[str, Any], labels: Tensor, device: torch.device, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Put the condition among the positional values, or return it as keywords."""
        found = self.conditions.rows(labels, device, dtype)
        if len(found) > 1:
            return found
        condition = next(iter(found.values())) if found else labels.to(device, non_blocking=True)
        if self._options.condition_argument is not None:
            return {self._options.condition_argument: condition}
        values["condition"] = condition
        return {}

    def _own_dtype(self) -> torch.dtype | None:
        if not isinstance(self._function, nn.Module):
            return None
        tensors = [*self._function.parameters(), *self._function.buffers()]
        return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), None)

    def _checked(self, answer: Any, x: Tensor) -> Tensor:
        if isinstance(answer, (tuple, list)) and answer:
            answer = answer[0]
        if isinstance(answer, Mapping) and len(answer) == 1:  # diffusers' outputs are mappings too
            answer = next(iter(answer.values()))
        if not isinstance(answer, Tensor):
            names = f" of {', '.join(map(str, answer))}" if isinstance(answer, Mapping) else ""
            raise ConfigError(
                f"{self.name} answered with a {type(answer).__name__}{names}; expected a tensor like the states, "
                f"{tuple(x.shape)}, a tuple that begins with one, or a mapping of one alone. Name a function of yours "
                "that picks it as teacher.network."
            )
        if answer.shape == x.shape:
            return answer
        wider = (
            answer.ndim == x.ndim >= 2
            and answer.shape[1] > x.shape[1]
            and answer.shape[:1] + answer.shape[2:] == x.shape[:1] + x.shape[2:]
        )
        if wider and self._options.extra_channels == "drop":
            return answer[:, : x.shape[1]]
        remedy = (
            "If the channels beyond the state's are variances, set teacher.extra_channels=drop"
            if wider
            else "Check teacher.sample_shape and teacher.arguments"
        )
        raise ConfigError(
            f"{self.name} answered states of shape {tuple(x.shape)} with {tuple(answer.shape)}; expected "
            f"the same shape. {remedy}."
        )
