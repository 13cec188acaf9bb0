"""AdamW on the fused path, which clips and skips a non-finite step on the device; averages of weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, final

import torch
from torch import Tensor, nn

from freeflow_core.config import OptimizerConfig
from freeflow_core.errors import CheckpointError

if TYPE_CHECKING:
    from freeflow_core.engine.moments import Packing
    from freeflow_core.engine.sharding import Sharding

_MOMENTS = ("exp_avg", "exp_avg_sq")
_COUNT = "updates"
_PIECE = 2**22
"""Elements updated or unpacked at once where that takes memory, unless one weight has more."""


def learning_rate(config: OptimizerConfig, images: int, total_images: int) -> float:
    """Rate after ``images`` of ``total_images``: linear warm-up, then the schedule."""
    peak = config.learning_rate
    warmup = config.warmup_images
    if images < warmup:
        return peak * (images + 1) / (warmup + 1)
    fraction = min(1.0, (images - warmup) / max(1, total_images - warmup))
    low = config.final_fraction
    if config.schedule == "cosine":
        return peak * (low + (1 - low) * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * fraction)).item()))
    if config.schedule == "linear":
        return peak * (1 - (1 - low) * fraction)
    if config.schedule == "inverse-sqrt":
        decay = config.decay_images or max(1, total_images // 10)
        return peak / max(1.0, images / decay) ** 0.5
    return peak


def ema_decay(images: int, batch_size: int, halflife_images: float, rampup_ratio: float | None) -> float:
    """Decay of one step after ``images`` images, of ``batch_size`` each (Karras et al. 2022, EDM, training loop)."""
    halflife = halflife_images if rampup_ratio is None else min(halflife_images, images * rampup_ratio)
    return 0.5 ** (batch_size / max(halflife, 1e-8))


@torch.no_grad()
def update_average(average: Sequence[Tensor], weights: Sequence[Tensor], step: Tensor) -> None:
    """average += step * (weights - average), all tensors at once.

    ``step`` is 0-d on the device: 1 - decay, or 0 where the update was skipped.
    """
    if step.device.type == "cpu":  # reading a number costs no sync here, and saves a temporary of the weights' size
        torch._foreach_lerp_(list(average), list(weights), step.item())
        return
    difference = torch._foreach_sub(list(weights), list(average))  # as large as these weights: see Copies
    torch._foreach_mul_(difference, step)
    torch._foreach_add_(list(average), difference)


@torch.no_grad()
def copy_buffers(to: Sequence[Tensor], buffers: Sequence[Tensor]) -> None:
    """Statistics and the like are no averages: a network's copy takes them as they are, all at once."""
    if buffers:
        torch._foreach_copy_(list(to), list(buffers))


def grouped(weights: Sequence[Tensor], indices: Iterable[int]) -> list[list[int]]:
    """``indices`` in their order, in groups of at most 4 M elements, or of one weight that has more."""
    groups: list[list[int]] = []
    size = _PIECE
    for i in indices:
        size += weights[i].numel()
        if not groups or size > _PIECE:
            groups.append([])
            size = weights[i].numel()
        groups[-1].append(i)
    return groups


def host_copy(tensor: Tensor) -> Tensor:
    """A copy in the host's memory."""
    return tensor.detach().to("cpu", copy=True)


class Piece(ABC):
    """Both moments of some of a network's weights.

    ``indices``: which. ``kept``: the tensors that stay between steps; ``on_host``: in the host's memory.
    ``is_packed``: what :meth:`open` gives is valid until the next piece is opened, and kept by :meth:`close`.
    """

    indices: Sequence[int]
    kept: Sequence[Tensor]
    is_packed: bool
    on_host: bool = False

    @abstractmethod
    def open(self) -> tuple[list[Tensor], list[Tensor]]:
        """First and second moments, in the weights' shapes and precision, to be changed in place."""

    @abstractmethod
    def close(self) -> None:
        """Keep what they are now."""


@final
class Whole(Piece):
    """Moments as they are."""

    is_packed = False

    def __init__(self, indices: Sequence[int], weights: Sequence[Tensor]) -> None:
        self.indices = indices
        self._first, self._second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
        self.kept = [*self._first, *self._second]

    def open(self) -> tuple[list[Tensor], list[Tensor]]:
        return self._first, self._second

    def close(self) -> None:
        """They are changed in place."""


@final
class RoleOptimizer:
    """One role's AdamW (Loshchilov & Hutter 2017), by the kernel behind ``torch.optim.AdamW(fused=True)``.

    The kernel takes ``grad_scale`` (it divides the gradients) and ``found_inf`` (it leaves weights and moments alone);
    both stay on the device, so nothing is synchronised. It is called directly, because torch's wrapper keeps a step
    count per weight and walks through all weights in Python several times, which a small network's step feels. Here
    one count serves all; results are torch's, bit for bit. Of a divided network it sees this process's parts alone.

    Args:
        packing: how moments are kept between steps; None: as they are.
    """

    def __init__(
        self,
        network: nn.Module,
        config: OptimizerConfig,
        sharding: Sharding | None = None,
        packing: Packing | None = None,
    ) -> None:
        self.config = config
        self._sharding = sharding
        self.names = [name for name, p in network.named_parameters() if p.requires_grad]
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self._weights = self._parts(self.parameters)
        self.packing = packing
        self._moments: list[Piece] | None = None
        self._count = torch.zeros((), device=self.parameters[0].device)

    def gradient_norm(self) -> Tensor:
        """Norm of all gradients, 0-d on the device."""
        gradients = self._parts(p.grad for p in self.parameters if p.grad is not None)
        if not gradients:
            return torch.zeros((), device=self._count.device)
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        return norm if self._sharding is None else self._sharding.norm(norm)

    @torch.no_grad()
    def step(self, rate: float, norm: Tensor, skip: Tensor) -> None:
        """Update, clipped to ``clip_norm``, unless ``skip`` (0-d on the device) is 1; then forget the gradients."""
        on_host = skip.device.type == "cpu"  # there a number is read without a sync, which spares the kernel's checks
        if not (on_host and skip.item()):
            self._update(rate, norm, None if on_host else skip.float())
        self.forget()

    def forget(self) -> None:
        for p in self.parameters:
            p.grad = None

    def reset(self) -> None:
        self._moments = None
        self._count.zero_()

    def state_dict(self, copied: Callable[[Tensor], Tensor] | None = None) -> dict[str, Tensor]:
        """Moments by parameter name, in the weights' precision, and the number of updates; empty before the first.

        ``copied`` makes what is given of each; None: they are given themselves, packed ones as copies in the host's
        memory. Packed ones are copied as they are unpacked: where they are, there may not be room for all of them.
        """
        if self._moments is None:
            return {}
        state = {_COUNT: self._count if copied is None else copied(self._count)}
        for piece in self._moments:
            for moment, tensors in zip(_MOMENTS, piece.open(), strict=True):
                for i, part in zip(piece.indices, tensors, strict=True):
                    joined = part if self._sharding is None else self._sharding.joined(part, self.parameters[i])
                    copy = host_copy if piece.is_packed and copied is None else copied
                    state[f"{moment}/{self.names[i]}"] = joined if copy is None else copy(joined)
        return state

    def kept(self) -> tuple[list[Tensor], list[Tensor]]:
        """What stays between steps: on the weights' device, and in the host's memory."""
        found = [(tensor, piece.on_host) for piece in self._moments or () for tensor in piece.kept]
        held = [
            self._count,
            *(self.packing.workspace if self.packing else ()),
            *(tensor for tensor, on_host in found if not on_host),
        ]
        return held, [tensor for tensor, on_host in found if on_host]

    def layout(self) -> dict[str, Tensor]:
        """Tensors of the names and shapes of :meth:`state_dict`'s."""
        own = zip(self.names, self.parameters, strict=True)
        return {_COUNT: self._count} | {f"{moment}/{name}": p.detach() for name, p in own for moment in _MOMENTS}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore moments. Raises :class:`CheckpointError` for names or shapes of another network."""
        expected = {f"{moment}/{name}" for moment in _MOMENTS for name in self.names} | {_COUNT}
        if not tensors:
            self.reset()
            return
        if differing := sorted(expected ^ tensors.keys()):
            raise CheckpointError(
                f"The checkpoint's optimizer state belongs to other weights: {', '.join(differing[:5])} "
                f"{'...' if len(differing) > 5 else ''} found on one side only."
            )
        moments = tuple([tensors[f"{moment}/{name}"] for name in self.names] for moment in _MOMENTS)
        for name, p, *own in zip(self.names, self.parameters, *moments, strict=True):
            if any(moment.shape != p.shape for moment in own):
                raise CheckpointError(f"Optimizer state of {name!r} has another shape than the weights.")
        self._moments = self._pieces()
        parts = [self._parts(moment) for moment in moments]
        with torch.no_grad():
            for piece in self._moments:
                for own, given in zip(piece.open(), parts, strict=True):
                    torch._foreach_copy_(own, [given[i] for i in piece.indices])
                piece.close()
        self._count.copy_(tensors[_COUNT])

    def _parts(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        return list(tensors) if self._sharding is None else self._sharding.parts(tensors)

    def _pieces(self) -> list[Piece]:
        whole: list[Piece] = [Whole(range(len(self._weights)), self._weights)]
        return whole if self.packing is None else self.packing.pieces(self._weights)

    def _update(self, rate: float, norm: Tensor, found_inf: Tensor | None) -> None:
        if self._moments is None:
            self._moments = self._pieces()
        # Weights that this step's loss did not reach are left alone.
        used = [i for i, p in enumerate(self.parameters) if p.grad is not None]
        parts = self._parts(p.grad for p in self.parameters if p.grad is not None)
        gradients = dict(zip(used, parts, strict=True))
        config = self.config
        self._count += 1 if found_inf is None else 1 - found_inf
        scale = None if config.clip_norm is None else (norm / config.clip_norm).clamp_min(1).float()
        for piece in self._moments:
            if not (chosen := [i for i in piece.indices if i in gradients]):
                continue
            first, second = piece.open()
            if len(chosen) < len(piece.indices):
                places = [place for place, i in enumerate(piece.indices) if i in gradients]
                first, second = ([moment[place] for place in places] for moment in (first, second))
            torch._fused_adamw_(
                [self._weights[i] for i in chosen],
                [gradients[i] for i in chosen],
                first,
                second,
                [],
                [self._count] * len(chosen),
                lr=rate,
                beta1=config.beta1,
                beta2=config.beta2,
                weight_decay=config.weight_decay,
                eps=config.epsilon,
                amsgrad=False,
                maximize=False,
                grad_scale=scale,
                found_inf=found_inf,
            )
            piece.close()


@dataclass(frozen=True)
class Copies:
    """Weights (in groups, so that nothing as large as a network is made on the way) and buffers, of both.

    Tensors that both hold as one are left out: what adapters adapt.
    """

    weights: list[tuple[list[Tensor], list[Tensor]]]
    buffers: list[Tensor]
    followed_buffers: list[Tensor]

    @classmethod
    def of(cls, copied: nn.Module, followed: nn.Module, sharding: Sharding | None = None) -> Self:
        def apart(first: Iterable[Tensor], second: Iterable[Tensor]) -> Iterator[list[Tensor]]:
            pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not b]
            sides: list[list[Tensor]] = [[pair[side] for pair in pairs] for side in (0, 1)]
            return iter(sides if sharding is None else map(sharding.parts, sides))

        own, others = apart(copied.parameters(), followed.parameters())
        groups = grouped(own, range(len(own)))
        weights = [([own[i] for i in group], [others[i] for i in group]) for group in groups]
        return cls(weights, *apart(copied.buffers(), followed.buffers()))

    def follow(self, step: Tensor) -> None:
        """Weights go by ``step`` towards the followed ones; buffers, such as statistics, are no averages: copied."""
        for own, followed in self.weights:
            update_average(own, followed, step)
        copy_buffers(self.buffers, self.followed_buffers)
