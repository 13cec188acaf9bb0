"""Samples by index: the noise and the condition of sample i are a function of (seed, i) alone."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, Literal, Protocol, TypeAlias, final, get_args

import torch
from torch import Tensor

from freeflow_core.config import ComponentChoice, EvaluationConfig
from freeflow_core.engine.build import Builder
from freeflow_core.engine.process import Crew, autocast
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import (
    Codec,
    EvaluationBatch,
    EvaluationContext,
    FlowMapSampler,
    HybridSampler,
    Sampler,
    Student,
    Teacher,
    VelocitySampler,
)
from freeflow_core.math.flow import jump_grid, uniform_grid
from freeflow_core.math.random import Lookahead, PhiloxDraws
from freeflow_core.types import Condition, Guidance, Samples

Labels: TypeAlias = tuple[int, ...] | Literal["balanced", "random"]
"""Classes by index: a cycle of fixed ones, all in turn, or one drawn from p(c) for each index."""


@dataclass(frozen=True)
class SampleBatch:
    """Samples of ``index`` (N,): noise ``z``, states ``x`` (N, *D), uint8 ``images``, and what they cost.

    ``seconds`` are those of sampling and decoding; drawing the noise and moving the images to the host do not count.
    ``memo``: see :meth:`EvaluationBatch.memo`.
    """

    index: Tensor
    z: Tensor
    x: Tensor
    images: Tensor
    condition: Condition
    guidance: Guidance
    num_evaluations: float
    seconds: float
    memo: dict[str, Any] = field(default_factory=dict)

    def shown(self, reference_x: Tensor | None = None) -> EvaluationBatch:
        """What evaluators are shown of it; ``reference_x``: see :class:`EvaluationBatch`."""
        return EvaluationBatch(
            self.images, self.condition, self.index, self.x, self.z, reference_x, self.guidance, self.memo
        )


Extract: TypeAlias = Callable[[EvaluationBatch], None]


class SampleStream(Protocol):
    """Samples by index, however they come about."""

    def batches(self, start: int, num: int, batch_size: int, extract: Extract | None = None) -> Iterator[SampleBatch]:
        """Samples ``start`` ... ``start + num - 1``, on every process of the crew that draws them.

        The process that drew a batch has ``extract`` memorise something of it.
        """


def crew_batches(
    crew: Crew, draw: Callable[[Tensor], SampleBatch], rows: Iterable[Tensor], extract: Extract | None = None
) -> Iterator[SampleBatch]:
    """The batches of ``rows``, each drawn by one process and given to all."""

    def drawn(index: Tensor) -> SampleBatch:
        batch = draw(index)
        if extract is not None:
            extract(batch.shown())
        return batch

    return crew.shared(partial(drawn, index) for index in rows)


def blocks(start: int, num: int, size: int) -> Iterator[Tensor]:
    """The indices ``start`` ... ``start + num - 1``, ``size`` at a time."""
    for first in range(start, start + num, size):
        yield torch.arange(first, min(first + size, start + num))


@final
class Generator:
    """Draws samples with one sampler and one model.

    Args:
        sampler: any of the three kinds; it decides which of ``teacher`` and ``student`` is used.
        num_steps: steps of the sampler; a hybrid's count the teacher's, after the jump to ``jump_to``.
        labels: which classes; models without classes take ``"balanced"`` alone.
        precision: ``"bf16"`` autocasts the networks; the noise, the sampler's states and the codec keep their own.
        crew: the processes that draw together in :meth:`batches` and :meth:`drawn`.

    Attributes:
        networks: the models that are used: the student, the teacher, or both.

    Raises:
        ConfigError: the sampler needs a model that is not there, or the model has no such classes.
    """

    def __init__(
        self,
        sampler: Sampler[Any],
        num_steps: int,
        codec: Codec,
        *,
        teacher: Teacher | None = None,
        student: Student | None = None,
        seed: int,
        guidance_weight: float = 1.0,
        guidance_low: float = 0.0,
        guidance_high: float = 1.0,
        jump_to: float = 0.5,
        labels: Labels = "balanced",
        precision: str = "float32",
        crew: Crew | None = None,
    ) -> None:
        self.crew = crew or Crew()
        self.sampler = sampler
        self.codec = codec
        self.seed = seed
        self.model: Any = _choose_model(sampler, teacher, student)
        self.networks: tuple[Any, ...] = self.model if isinstance(self.model, tuple) else (self.model,)
        own_grid = sampler.default_grid(num_steps)
        self.grid = uniform_grid(num_steps) if own_grid is None else own_grid
        if isinstance(sampler, HybridSampler):
            self.grid = jump_grid(jump_to, num_steps)
        self._weight, self._low, self._high = guidance_weight, guidance_low, guidance_high
        self._labels = labels
        self._precision = precision
        self._teacher = teacher
        network = self.networks[0]
        like = next(chain(network.parameters(), network.buffers()), torch.zeros(()))
        # Networks of 16 bits sample in 32: the states gather many small steps.
        self._device, self._dtype = like.device, torch.promote_types(like.dtype, torch.float32)
        _check_labels(labels, network.num_classes)

    @property
    def num_steps(self) -> int:
        """Of the sampler's grid; a hybrid's jump is one."""
        return len(self.grid) - 1

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Dimensions of one state."""
        return tuple(self.networks[0].sample_shape)

    def batches(self, start: int, num: int, batch_size: int, extract: Extract | None = None) -> Iterator[SampleBatch]:
        """See :class:`SampleStream`."""
        ahead = Lookahead(batch_size) if self.crew.num_processes == 1 else None  # else others draw what comes next
        return crew_batches(self.crew, partial(self.batch, ahead=ahead), blocks(start, num, batch_size), extract)

    def drawn(self, index: Tensor, batch_size: int, *, decode: bool = True) -> tuple[Tensor, Tensor]:
        """States and images of the samples ``index`` (N,)."""
        draw = partial(self.batch, decode=decode)
        parts = list(crew_batches(self.crew, draw, torch.split(index, batch_size)))
        return torch.cat([part.x for part in parts]), torch.cat([part.images for part in parts])

    @torch.no_grad()
    def batch(
        self, index: Tensor, noise_index: Tensor | None = None, *, decode: bool = True, ahead: Lookahead | None = None
    ) -> SampleBatch:
        """The samples ``index`` (N,), from the noise of ``noise_index`` (N,) where it is given, else from their own.

        Without ``decode`` the images are the states. ``ahead`` draws the noise of batches that are to follow.
        """
        device, dtype = self._device, self._dtype
        draws = PhiloxDraws(self.seed, index, device=device, dtype=dtype)
        noise = draws if noise_index is None else PhiloxDraws(self.seed, noise_index, device=device, dtype=dtype)
        # Not the sampler's draws: each of its steps has a stream of its own, and what is drawn ahead of all is held.
        start = PhiloxDraws(self.seed, noise.index, device=device, dtype=dtype, lookahead=ahead)
        z = start.noise("prior", self.sample_shape)
        condition = self._condition(index, draws)
        guidance = Guidance(torch.full((len(index),), self._weight, dtype=torch.float64), self._low, self._high)
        _synchronize(device)
        began = time.perf_counter()
        with autocast(device, self._precision):
            samples: Samples = self.sampler.sample(self.model, z, self.grid, condition, guidance, noise)
        images = self.codec.decode(samples.x) if decode and samples.x.ndim == 4 else samples.x
        _synchronize(device)
        seconds = time.perf_counter() - began
        return SampleBatch(index, z, samples.x, images, condition, guidance, samples.num_evaluations, seconds)

    def _condition(self, index: Tensor, draws: PhiloxDraws) -> Condition:
        num_classes = self.networks[0].num_classes
        if self._labels == "random":
            return self._teacher.sample_condition(draws) if self._teacher else draws.integers("label", num_classes)
        if isinstance(self._labels, tuple):
            return torch.tensor(self._labels)[index % len(self._labels)]
        if self._teacher is not None:
            return self._teacher.balanced_condition(index)
        return index % num_classes if num_classes else None


def make_generator(
    evaluation: EvaluationConfig, builder: Builder, context: EvaluationContext, sampler: ComponentChoice, num_steps: int
) -> Generator:
    """A generator with the seed, the guidance and the jump of ``evaluation``, in the precision of the run."""
    return Generator(
        builder.build("sampler", sampler),
        num_steps,
        context.codec,
        teacher=context.teacher,
        student=context.student,
        seed=evaluation.seed,
        guidance_weight=evaluation.guidance_weight,
        guidance_low=evaluation.guidance_low,
        guidance_high=evaluation.guidance_high,
        jump_to=evaluation.jump_to,
        precision=builder.precision,
        crew=builder.crew,
    )


def _check_labels(labels: Labels, num_classes: int | None) -> None:
    if isinstance(labels, str) and labels not in get_args(get_args(Labels)[1]):
        raise ConfigError(f"Unknown labels {labels!r}; expected 'balanced', 'random', or classes, e.g. (0, 2).")
    if labels == "balanced":
        return
    if not num_classes:
        raise ConfigError(f"The model has no classes, so there are no labels to choose ({labels!r}). Leave them out.")
    if isinstance(labels, tuple) and (not labels or any(not 0 <= label < num_classes for label in labels)):
        raise ConfigError(
            f"Labels {list(labels)} are out of range: the model has {num_classes} classes, 0 to {num_classes - 1}."
        )


def _choose_model(sampler: Sampler[Any], teacher: Teacher | None, student: Student | None) -> Any:
    name = type(sampler).__name__
    if isinstance(sampler, VelocitySampler):
        if teacher is None:
            raise ConfigError(f"The sampler {name} integrates a teacher, but none was given.")
        return teacher
    if student is None:
        raise ConfigError(f"The sampler {name} needs a student, but none was given.")
    if isinstance(sampler, FlowMapSampler):
        return student
    if teacher is None:
        raise ConfigError(f"The sampler {name} goes on with a teacher after the student's jump, but none was given.")
    return student, teacher


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
