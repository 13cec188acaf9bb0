"""One call of somebody else's network: arguments as it wants them, its answer as a tensor like the state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from freeflow_core.errors import ConfigError
from freeflow_networks.conditions import Conditions
from freeflow_networks.config import OwnNetworkOptions

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

    Args:
        function: what is called; its tensors move with this module where it is a torch module.
        options: how it is called, and its dtype: None for as it comes, following a run from float32 to float64 and
            back. 16 bits stay so.
        conditions: what labels stand for.
        name: of the network, in errors.
        is_program: a saved program, whose dtype is part of it; torch.export's refuse ``eval()`` too.
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
        if not isinstance(answer, Tensor):
            raise ConfigError(
                f"{self.name} answered with a {type(answer).__name__}; expected a tensor like the states, "
                f"{tuple(x.shape)}, or a tuple that begins with one. For diffusers models set "
                "teacher.keywords={return_dict: false}."
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
