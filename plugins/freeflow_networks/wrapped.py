"""The teacher's own network as the student: a copy of it that also takes the length of a jump and the guidance."""

import copy
import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Self, final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from freeflow_core.config import ComponentChoice
from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.files import replacing
from freeflow_core.interfaces import AverageVelocityStudent, BuildContext, ConvertibleTeacher, Teacher
from freeflow_core.math.conversions import Prediction
from freeflow_core.network_file import check_tensors, save_tensors
from freeflow_core.types import Condition, LoadReport, NetworkState
from freeflow_networks.adapters import add_adapters, merged_tensors
from freeflow_networks.config import WrappedStudentConfig
from freeflow_networks.time_path import Place, TimePath, follow_time

_log = logging.getLogger("freeflow")
FAMILY = "wrapped"
_GUIDANCE_SCALE = 8.0
"""Guidance weights of 1 to 9 spread over one half period of the lowest frequency."""
_TRIED_ROWS = 2


@final
class JumpEmbedding(nn.Module):
    """Adds functions of a jump's length d = t - s and of the guidance weight w to the outputs of modules.

    The last layer of each is zero at first, so that the network is what it was. d enters as it is, beside sin and cos
    of pi k d, k = 1, 2, ..., without autocast, so that finite differences resolve it.

    Args:
        places: the modules, by their paths.
        width: hidden units.
    """

    def __init__(self, places: tuple[Place, ...], width: int, num_frequencies: int) -> None:
        super().__init__()
        self.places = places
        self._num_frequencies = num_frequencies
        self.trunk = nn.Sequential(
            nn.Linear(2 * (1 + 2 * num_frequencies), width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.heads = nn.ModuleList(nn.Linear(width, place.width) for place in places)
        for parameter in self.heads.parameters():
            nn.init.zeros_(parameter)
        self._hidden: Tensor | None = None

    def attach(self, network: nn.Module) -> None:
        """Take part in every pass of ``network`` from now on. Copies of both together belong together."""
        for number, place in enumerate(self.places):
            network.get_submodule(place.path).register_forward_hook(functools.partial(self.add, number))

    @contextmanager
    def jumping(self, d: Tensor, weight: Tensor) -> Iterator[None]:
        """Passes inside the block are jumps of lengths ``d`` (N,) at guidance weights ``weight`` (N,)."""
        like = next(self.trunk.parameters())
        dtype = torch.promote_types(like.dtype, torch.float32)
        features = []
        for scalar in (d, (weight - 1) / _GUIDANCE_SCALE):
            values = scalar.to(device=like.device, dtype=dtype, non_blocking=True)[:, None]
            angles = [math.pi * (k + 1) * values for k in range(self._num_frequencies)]
            features += [values, *(angle.sin() for angle in angles), *(angle.cos() for angle in angles)]
        with torch.autocast(like.device.type, enabled=False):
            self._hidden = self.trunk(torch.cat(features, 1).to(like.dtype))
        try:
            yield
        finally:
            self._hidden = None

    def add(self, number: int, module: nn.Module, inputs: Any, output: Any) -> Any:
        """The forward hook of place ``number``."""
        if self._hidden is None:
            return output
        with torch.autocast(self._hidden.device.type, enabled=False):
            values = self.heads[number](self._hidden)
        if isinstance(output, tuple | list):
            return type(output)([self.places[number].add(output[0], values), *output[1:]])
        return self.places[number].add(output, values)


@final
class WrappedStudent(AverageVelocityStudent):
    """u(x_t, t, s, c, w) of a copy of the teacher: its velocity, with d = t - s and w as further inputs.

    At the start it answers every jump with the teacher's velocity, exactly. The network stays in evaluation mode:
    normalisation goes by the statistics that the teacher was trained to, and nothing is dropped.

    With adapters (``config.lora_rank``) the weights are the teacher's very tensors, which stay frozen, and copies of
    the student (an average, a fake velocity) have adapters of their own on the same. Its state is what it trains.

    Args:
        wrapped: the teacher's copy, of its own tensors or, for adapters, of the teacher's.
        places: where d and w enter; None: as the configuration says, or found.
    """

    def __init__(
        self,
        wrapped: Teacher,
        config: WrappedStudentConfig,
        *,
        places: tuple[Place, ...] | None = None,
        trained: frozenset[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.wrapped = wrapped
        self.sample_shape = tuple(wrapped.sample_shape)
        self.num_classes = wrapped.num_classes
        self.codec = wrapped.codec
        self._config = config
        weights = dict(wrapped.named_parameters())
        if not weights:
            raise ConfigError(
                f"The teacher {_name(wrapped)} has no weights of its own (no torch parameters), so there is nothing to "
                "wrap. Choose a student of your own size, such as --student mlp or --student transformer."
            )
        for parameter in weights.values():
            parameter.requires_grad_(parameter.is_floating_point())
        wrapped.eval()
        if places is None or trained is None:
            path = self._follow(config)
            places = path.places if places is None else places
            trained = path.reached
            if not trained:
                raise ConfigError(
                    f"The velocity of the teacher {_name(wrapped)} passes no gradient to its weights, so its network "
                    "cannot be trained: it detaches, or runs under no_grad or inference_mode."
                )
        self._frozen = config.lora_rank is not None
        if config.lora_rank is not None:
            wrapped.requires_grad_(False)
            alpha = float(config.lora_rank) if config.lora_alpha is None else config.lora_alpha
            add_adapters(wrapped.own_network, config.lora_rank, alpha, config.lora_modules, seed)
            trained = frozenset(name for name, p in wrapped.named_parameters() if p.requires_grad)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.jump_embedding = JumpEmbedding(places, config.width, config.num_frequencies)
        self.jump_embedding.to(next(iter(weights.values())).device)
        self.jump_embedding.attach(wrapped.own_network)
        self._trained = frozenset(f"wrapped.{name}" for name in trained) | {
            f"jump_embedding.{name}" for name, _ in self.jump_embedding.named_parameters()
        }
        self.requires_grad_(True)

    @classmethod
    def from_config(cls, config: WrappedStudentConfig, context: BuildContext) -> Self:
        """Raises ``ConfigError`` without a teacher, for one that cannot be wrapped, or options that do not fit it."""
        if context.teacher is None:
            raise ConfigError(
                "The student 'wrapped' is made of its teacher's network, and this run has no teacher. Choose one with "
                "--teacher NAME, or another student."
            )
        copied = context.teacher.student_copy(share_weights=config.lora_rank is not None)
        student = cls(copied, config, seed=context.seed)
        if context.device.type != "meta":
            _log.info(f"Student: {student.description}.")
            _warn_of_amplification(student.wrapped)
        return student

    @property
    def description(self) -> str:
        """What is trained, and where the jump enters, in words."""
        where = ", ".join(repr(place.path) for place in self.jump_embedding.places[:3])
        more = len(self.jump_embedding.places) - 3
        where += f" and {more} more" if more > 0 else ""
        trained = sum(p.numel() for p in self.parameters() if p.requires_grad)
        what = f"adapters of rank {self._config.lora_rank}" if self._frozen else "all weights"
        return f"the teacher's network, {what} trained ({trained:,}); the jump and the guidance weight enter at {where}"

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Tensor | None) -> Tensor:
        weight = torch.ones_like(t) if guidance is None else guidance
        with self.jump_embedding.jumping(t - s.to(t), weight):
            velocity = self.wrapped.velocity(x_t, t.clamp(*self.wrapped.time_range), condition)
        return velocity

    def average_velocity(self, output: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return output

    def train(self, mode: bool = True) -> Self:
        """Its own mode changes; the network's is evaluation."""
        super().train(mode)
        self.wrapped.eval()
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Only of what is trained: not what adapters adapt, nor what the velocity does not depend on."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(requires_grad and name in self._trained)
        return self

    def load_teacher(self, teacher: Teacher) -> LoadReport:
        """Take all of the teacher's weights; adapters hold them already. Raises ``ConfigError`` for another network."""
        weights = dict(chain(self.wrapped.named_parameters(), self.wrapped.named_buffers()))
        names = {name.replace(".base_layer.", "."): name for name in weights}  # adapters stand around their layers
        own = {name: weights[adapted] for name, adapted in names.items()}
        theirs = teacher.student_copy(share_weights=True)
        found = dict(chain(theirs.named_parameters(), theirs.named_buffers()))
        missing = [name for name, tensor in found.items() if name not in own or own[name].shape != tensor.shape]
        if missing:
            raise ConfigError(
                f"The student wraps another network than this teacher's: they differ in {', '.join(missing[:5])}. "
                "Build the student beside the teacher whose weights it is to take."
            )
        with torch.no_grad():
            for name, tensor in found.items():
                if own[name] is not tensor:
                    own[name].copy_(tensor)
        taken = tuple(f"wrapped.{names[name]}" for name in found)
        return LoadReport(taken=taken, new=tuple(sorted(self._trained - set(taken))))

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """With adapters, what is trained alone: the rest is the teacher's."""
        state = super().state_dict(*args, **kwargs)
        if self._frozen:
            prefix = kwargs.get("prefix", "")
            for name in [name for name in state if name.removeprefix(prefix) not in self._trained]:
                del state[name]
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """What :meth:`state_dict` gave."""
        if strict:
            check_tensors(self.state_dict(), state_dict, "state of a wrapped student")
        return super().load_state_dict(state_dict, strict=strict and not self._frozen, assign=assign)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        if self._frozen:
            for name, tensor in chain(self.named_parameters(), self.named_buffers()):
                if name not in self._trained:
                    memo[id(tensor)] = tensor
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        return copied

    def network_state(self) -> NetworkState:
        if self.wrapped.component is None:
            raise ConfigError(
                "This wrapped student cannot be kept in a file, for nothing says how its teacher is built again. Build "
                "the teacher by its name and options: api.load_teacher(name, options=...)."
            )
        config = {
            "teacher": self.wrapped.component.model_dump(mode="json"),
            "options": self._config.model_dump(mode="json"),
            "places": [[place.path, place.width, place.dim] for place in self.jump_embedding.places],
            "trained": sorted(name.removeprefix("wrapped.") for name in self._trained if name.startswith("wrapped.")),
        }
        return NetworkState(FAMILY, config, self.state_dict())

    @classmethod
    def from_state(cls, state: NetworkState) -> Self:
        raise CheckpointError(
            "A wrapped student is rebuilt with its teacher, whose network it is made of: use restore(state, context)."
        )

    @classmethod
    def restore(cls, state: NetworkState, context: BuildContext) -> Self:
        """The student of a file, its teacher's network built anew from the options in it.

        Raises ``CheckpointError`` for a file of no use, ``ConfigError`` where the teacher cannot be built, or its code
        not be trusted.
        """
        try:
            if state.family != FAMILY:
                raise ValueError(f"it is of the family {state.family!r}, not {FAMILY!r}")
            options = dict(state.config["teacher"])
            config = WrappedStudentConfig.model_validate(state.config["options"])
            places = tuple(Place(str(path), int(width), int(dim)) for path, width, dim in state.config["places"])
            trained = frozenset(map(str, state.config["trained"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"The file does not describe a wrapped student: {error}.") from None
        component = ComponentChoice.model_validate(options)
        teacher: Teacher = context.component("teacher", options.pop("name"), options)
        shared = config.lora_rank is not None
        teacher = teacher.eval().requires_grad_(False)
        copied = teacher.student_copy(share_weights=shared)
        student = cls(copied, config, places=places, trained=trained)
        check_tensors(student.state_dict(), state.tensors, f"student of the teacher {component.name!r}")
        student.load_state_dict(state.tensors)
        return student

    def enable_activation_checkpointing(self) -> None:
        """Recompute the blocks: the modules in the network's lists. What is added to is not inside one."""
        network = self.wrapped.own_network
        places = [place.path for place in self.jump_embedding.places]
        blocks = [
            (f"{path}.{name}", block)
            for path, module in network.named_modules()
            if isinstance(module, nn.ModuleList)
            for name, block in module.named_children()
        ]
        paths = [path for path, _ in blocks]
        free = [
            block
            for path, block in blocks
            if not any(path.startswith(f"{other}.") for other in paths)
            and not any(f"{place}.".startswith(f"{path}.") for place in places)
        ]
        if not free:
            super().enable_activation_checkpointing()
        for block in free:
            vars(block)["forward"] = functools.partial(_recomputed, block.forward)  # shadows the method

    def export(self, path: Path) -> str:
        """The network's own state dict, adapters merged into it, and ``jump_embedding.*``: ``.safetensors`` or ``.pt``.

        The metadata of a ``.safetensors`` file say where the embedding is added.
        """
        if path.suffix not in (".safetensors", ".pt", ".pth"):
            raise ConfigError(f"{path}: a wrapped student is written as .safetensors, .pt or .pth.")
        network = merged_tensors(self.wrapped.own_network)
        embedding = {f"jump_embedding.{name}": tensor for name, tensor in self.jump_embedding.state_dict().items()}
        places = [[place.path, place.width, place.dim] for place in self.jump_embedding.places]
        tensors = network | embedding
        if path.suffix == ".safetensors":
            save_tensors(path, tensors, {"places": places, "num_frequencies": self._config.num_frequencies})
        else:
            try:
                with replacing(path) as temporary:
                    torch.save({name: tensor.detach().cpu() for name, tensor in tensors.items()}, temporary)
            except OSError as error:
                raise CheckpointError(f"{path} cannot be written: {error}.") from error
        merged = ", adapters merged" if self._frozen else ""
        where = ", ".join(place.path for place in self.jump_embedding.places[:3])
        return f"{path}: {len(network)} tensors of the network{merged}, and the jump's embedding, added at {where}"

    def _follow(self, config: WrappedStudentConfig) -> TimePath:
        """One watched pass of the teacher's copy."""
        wrapped = self.wrapped
        like = next(wrapped.parameters())
        num = _TRIED_ROWS
        dtype = torch.promote_types(like.dtype, torch.float32)
        x = torch.zeros(num, *wrapped.sample_shape, dtype=dtype, device=like.device)
        low, high = wrapped.time_range
        t = torch.full((num,), (low + high) / 2, dtype=dtype, device=like.device)
        named = config.add_to if config.time_embedding is None else (config.time_embedding,)
        condition = wrapped.balanced_condition(torch.arange(num))
        return follow_time(
            wrapped.own_network,
            lambda x, t: wrapped.velocity(x, t, condition),
            x,
            t,
            named=named,
            parameters=dict(wrapped.named_parameters()),
        )


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _name(teacher: Teacher) -> str:
    return repr(teacher.component.name) if teacher.component else type(teacher).__name__


def _warn_of_amplification(teacher: Teacher) -> None:
    if not isinstance(teacher, ConvertibleTeacher) or teacher.convention.prediction not in (
        Prediction.NOISE,
        Prediction.SCORE,
    ):
        return
    factor = 1 / (1 - teacher.time_range[1])
    _log.warning(
        f"The teacher predicts the {teacher.convention.prediction.value}: at t = {teacher.time_range[1]:.3g}, where "
        f"jumps start, its velocity is that times {factor:.0f}, and so are the student's steps. Use a learning rate "
        "about that much smaller, or fine-tune the network to predict a velocity or the data first."
    )
