"""The plan of a run, as numbers: what a step costs, extended to the run."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from freeflow_core.config import RunConfig
from freeflow_core.engine.build import Builder, Components
from freeflow_core.engine.process import free_memory, planned_device_type, processes_per_copy
from freeflow_core.errors import DownloadError
from freeflow_core.evaluation.scores import build_evaluators, check_evaluators
from freeflow_core.interfaces import Codec, EvaluationBatch, EvaluationContext, ObjectiveInParts
from freeflow_core.plugin import Registry
from freeflow_core.tools.cost.estimate import changed, estimate_step, rows_of
from freeflow_core.tools.cost.rate import Rate, RateFrom, product_rate, step_seconds
from freeflow_core.tools.cost.step import TEACHER, RolePlan, size_of
from freeflow_core.weights import offline

_CPU = torch.device("cpu")
_GIB = 2**30
USABLE = 0.95
"""Of a named device's memory; the rest is its context and what the allocator cannot use."""


@dataclass(frozen=True)
class Plan:
    """What one run needs. Memory in bytes per process, as torch holds it: its own start-up comes on top.

    Args:
        device: what was planned for; it need not be there.
        batch_size: global; ``rows`` of it pass through the networks at once, ``accumulation`` times per step.
        images: length of the run.
        steps: the same in steps.
        networks: the teacher, if there is one, and all roles.
        activations: largest amount held beside the networks' own memory: what backward passes need, temporaries,
            low-precision copies of weights.
        buckets: further copies of the gradients, with which processes exchange them, or of divided networks the blocks
            that are gathered to be run; 0 for a single process.
        peak: largest number of bytes held at any one moment of a step: less than ``total``, for gradients appear while
            activations go.
        flops_per_step: floating-point operations of the matrix products of a step, of all processes together.
        load_report: what the student takes from its teacher; None without a teacher.
        free: bytes free on the device when the plan was made; None when it is not there to be asked.
        device_memory: bytes of the device that was named instead of one that is there.
        extrapolated_from: None when the whole step was gone through; else the number of rows that were run on real
            data, and from which activations and operations were extrapolated.
        warnings: what to know before starting.
        teacher: where the teacher's weights come from and how they are read, in words, or empty.
        rate: how fast the device is; None when it is not there and no rate was given.
        twice_with_micro_batches: whether more than one micro-batch has every row passed once more without gradient.
    """

    device: str
    precision: str
    num_processes: int
    batch_size: int
    rows: int
    accumulation: int
    images: int
    steps: int
    networks: tuple[RolePlan, ...]
    activations: int
    buckets: int
    peak: int
    flops_per_step: int
    load_report: str | None
    free: int | None
    extrapolated_from: int | None
    warnings: tuple[str, ...] = ()
    teacher: str = ""
    rate: Rate | None = None
    device_memory: int | None = None
    twice_with_micro_batches: bool = False

    @property
    def available(self) -> int | None:
        """Bytes that a process may hold: what is free, or of a device that was named all but its context's share."""
        return self.free if self.device_memory is None else int(USABLE * self.device_memory)

    @property
    def fits(self) -> bool:
        """Whether the total is available, as far as is known."""
        return self.available is None or self.total <= self.available

    @property
    def hours(self) -> float | None:
        """Of all devices together, at ``rate``; None where that is not known."""
        return None if self.rate is None else self.flops / self.rate.operations / 3600

    def network(self, name: str) -> RolePlan:
        return {network.name: network for network in self.networks}[name]

    @property
    def flops(self) -> float:
        return float(self.flops_per_step) * self.steps

    @property
    def total(self) -> int:
        """Sum of all kinds: what a process needs whose allocator does not reuse one kind's memory for another."""
        return sum(self.memory.values())

    @property
    def memory(self) -> dict[str, int]:
        """Bytes by kind, the largest of each: ``weights``, ``gradients``, ``optimizer`` and ``average`` of the student;
        ``teacher`` and any further role, by its name, with all it has; ``activations`` and ``buckets``."""
        kinds: dict[str, int] = {}
        for network in self.networks:
            if network.name == "student":
                kinds |= {name: getattr(network, name) for name in ("weights", "gradients", "optimizer", "average")}
            else:
                kinds[network.name] = network.memory
        return {**kinds, "activations": self.activations, "buckets": self.buckets}


@torch.random.fork_rng(devices=())  # weights are drawn, and a plan changes nothing
def make_plan(
    config: RunConfig,
    registry: Registry,
    num_processes: int = 1,
    *,
    device_memory: int | None = None,
    rate: Rate | None = None,
    free: int | None = None,
) -> Plan:
    """What ``config`` costs each of ``num_processes``. Nothing is started, trained or written.

    Needs neither the device, nor its memory, nor (for teachers that can be built from their architecture) weights.

    Args:
        device_memory: bytes of a device to plan for, a GPU unless ``runtime.device`` says otherwise.
        rate: how fast the device is; None: that of a matrix product, measured now, where it is there.
        free: bytes free on the device; None: asked now, where it is there.

    Raises:
        ConfigError: whatever the run itself would refuse.
        FreeflowError: from a component that cannot be built.
    """
    # Compiled networks hold no more than others; compiling them takes longer than all the rest.
    config = changed(config, runtime={"compile": False})
    if device_memory is not None and config.runtime.device == "auto":
        config = changed(config, runtime={"device": "cuda"})
    device_type = planned_device_type(config.runtime)
    short = _shortened(config, num_processes)
    found = estimate_step(short, registry, device_type, num_processes)
    cost, training, teacher = found.cost, config.training, found.components.teacher
    sharing = processes_per_copy(config.runtime, num_processes)
    networks, buckets, peak, objective = cost.networks, 0, cost.peak, found.components.objective
    if sharing > 1:
        networks, buckets = _divided(cost.networks, found.components, sharing)
        before, after = (sum(n.memory - n.gradients for n in each) for each in (cost.networks, networks))
        peak += after - before
    elif num_processes > 1:
        buckets = sum(network.gradients for network in networks)
    plan = Plan(
        device=device_type,
        precision=config.runtime.precision,
        num_processes=num_processes,
        batch_size=training.batch_size,
        rows=rows_of(config, num_processes),
        accumulation=training.accumulation,
        images=training.images,
        steps=training.steps,
        networks=networks,
        activations=cost.activations,
        buckets=buckets,
        peak=min(peak, sum(network.memory for network in networks) + cost.activations) + buckets,
        flops_per_step=round(cost.flops * num_processes * training.accumulation / short.training.accumulation),
        load_report=None if teacher is None else str(found.components.load_report),
        free=free_memory(device_type) if free is None else free,
        extrapolated_from=found.measured_rows,
        teacher="" if teacher is None else teacher.provenance,
        rate=rate or product_rate(device_type, config.runtime.precision),
        device_memory=device_memory,
        twice_with_micro_batches=objective.uses_batch_means and not isinstance(objective, ObjectiveInParts),
    )
    warnings = [*warnings_for(plan, found.reason)]
    if sharing > 1:
        warnings += _gathered(plan, found.components)
    return dataclasses.replace(plan, warnings=(*warnings, *_check_scoring(config, registry, found.components)))


def _divided(networks: Sequence[RolePlan], components: Components, sharing: int) -> tuple[tuple[RolePlan, ...], int]:
    """What each of ``sharing`` processes holds of the networks, and of blocks that are gathered to be run."""
    from freeflow_core.engine.blocks import blocks

    def part(size: int) -> int:
        return -(-size // sharing)

    found = []
    for network in networks:
        outside = 0
        if network.name == TEACHER and components.teacher is not None:
            # It is asked by methods of its own, so that what stands outside of its blocks is not divided.
            outside = network.weights - sum(size_of(block) for block in blocks(components.teacher))
        found.append(
            dataclasses.replace(
                network,
                weights=outside + part(network.weights - outside),
                gradients=part(network.gradients),
                optimizer=part(network.optimizer),
                offloaded=part(network.offloaded),
                average=part(network.average),
            )
        )
    student = components.student
    units = [size_of(block) for block in blocks(student)]
    # The block in hand and the next one; in the backward pass the gradients of one, and their copy to send.
    return tuple(found), 4 * max([*units, size_of(student) - sum(units)])


def _gathered(plan: Plan, components: Components) -> Iterator[str]:
    """What evaluation gathers, where it would not fit beside what stays."""
    held = sum(network.memory - network.gradients for network in plan.networks)
    held += size_of(components.student) + (0 if components.teacher is None else size_of(components.teacher))
    if plan.available is not None and held > plan.available:
        yield (
            f"Scores and pictures are made by a whole student and teacher in each process: with these it holds "
            f"{held / _GIB:.1f} GiB, more than there is. Set evaluation.enabled=false and "
            "evaluation.single_step=false, and evaluate afterwards with freeflow evaluate."
        )


def with_measured_rate(plan: Plan, config: RunConfig, registry: Registry) -> Plan:
    """The plan with the rate of a few real steps, taken by this process alone on its share of the batch."""
    alone = changed(config, training={"batch_size": plan.rows * plan.accumulation})
    operations = plan.flops_per_step / plan.num_processes / step_seconds(alone, registry)
    return dataclasses.replace(plan, rate=Rate(operations, RateFrom.STEPS))


def _check_scoring(config: RunConfig, registry: Registry, components: Components) -> Iterator[str]:
    """Give the evaluators two empty samples, through the codec, as a run does before its first step.

    Raises :class:`ConfigError` for one that does not fit. What cannot be tried without a download is said in a warning.
    """
    if not config.evaluation.enabled or config.evaluation.evaluators == ():
        return
    builder = Builder(registry, _CPU, config.seed)
    shape, teacher, index = tuple(components.student.sample_shape), components.teacher, torch.arange(2)
    condition = teacher.balanced_condition(index) if teacher is not None else None
    try:
        with offline():
            codec: Codec = builder.build("codec", config.codec)
            x = torch.zeros(2, *shape)
            context = EvaluationContext(_CPU, codec, reference=components.reference or components.source)
            images = codec.decode(x) if x.ndim == 4 else x
            named = build_evaluators(config.evaluation, builder, context, shape)
            check_evaluators(named, EvaluationBatch(images, condition, index, x=x, z=x))
    except DownloadError:
        yield f"Evaluators were not tried: a dry run fetches no weights; {config.codec.name}'s or theirs are not here."


def _shortened(config: RunConfig, num_processes: int) -> RunConfig:
    """Two micro-batches instead of many: each further one adds the same passes, and no memory."""
    training = config.training
    whole = training.batch_size % (num_processes * training.accumulation) == 0  # else the run would refuse it
    if training.accumulation <= 2 or not whole:
        return config
    return changed(config, training={"batch_size": 2 * training.batch_size // training.accumulation, "accumulation": 2})


def warnings_for(plan: Plan, reason: str) -> Iterator[str]:
    """Memory that will not do, passes that a setting adds, and figures that are not exact; ``reason``: why not."""
    if not plan.fits and plan.available is not None:
        where = "are free on this machine" if plan.device_memory is None else "can be used of the device named"
        yield (
            f"A step needs about {plan.total / _GIB:.1f} GiB, but {plan.available / _GIB:.1f} GiB {where} "
            f"({plan.device})."
        )
    if plan.accumulation > 1 and plan.twice_with_micro_batches:
        yield (
            "This objective needs means over the whole batch: with accumulation, every micro-batch is passed once "
            "more without gradient."
        )
    if plan.extrapolated_from is not None:
        yield (
            f"This run could not be planned without running it ({reason}). A few real steps of up to "
            f"{plan.extrapolated_from} rows were measured instead; activations, peak and operations for {plan.rows} "
            "rows are extrapolated from them."
        )
