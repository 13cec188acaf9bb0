"""The plan of a run, as numbers, and what to know about it before the run starts."""

from __future__ import annotations

from dataclasses import dataclass

from freeflow_core.config import RunConfig
from freeflow_core.interfaces import Objective

_GIB = 2**30


@dataclass(frozen=True)
class RolePlan:
    """One network: its size, and how often a step runs it. Memory in bytes, per process; 0 for what it does not have.

    Args:
        name: ``"teacher"``, ``"student"``, or a role of the objective such as ``"fake_velocity"``.
        parameters: number of weights.
        weights: the weights themselves, and buffers.
        gradients: when all of them are there, at the end of the backward pass.
        optimizer: moments and step counts, from the first update on.
        average: exponential moving average of the weights.
        gradient_passes: forward passes with gradient in one step, per image of the batch.
        other_passes: forward passes without gradient, per image; a forward-mode derivative counts as one.
    """

    name: str
    parameters: int
    weights: int
    gradients: int = 0
    optimizer: int = 0
    average: int = 0
    gradient_passes: float = 0.0
    other_passes: float = 0.0

    @property
    def memory(self) -> int:
        """Bytes of all parts together."""
        return self.weights + self.gradients + self.optimizer + self.average


@dataclass(frozen=True)
class Plan:
    """What one run needs. Memory in bytes per process, as torch holds it: its own start-up comes on top.

    Args:
        device: what was planned for; it need not be there.
        precision: of the networks' passes.
        num_processes: processes that share the batch.
        batch_size: global; ``rows`` of it pass through the networks at once, ``accumulation`` times per step.
        images: length of the run, in images seen.
        steps: the same in steps.
        networks: the teacher, if there is one, and all roles.
        activations: largest amount held beside the networks' own memory: what backward passes need, temporaries,
            low-precision copies of weights.
        buckets: further copies of the gradients, with which processes exchange them; 0 for a single process.
        peak: largest number of bytes held at any one moment of a step: less than ``total``, for gradients appear while
            activations go.
        flops_per_step: floating-point operations of the matrix products of a step, of all processes together.
        load_report: what the student takes from its teacher; None without a teacher.
        free: bytes free on the device when the plan was made; None when it is not there to be asked.
        extrapolated_from: None when the whole step was gone through; else the number of rows that were run on real
            data, and from which activations and operations were extrapolated.
        warnings: what to know before starting.
        teacher: where the teacher's weights come from and how they are read, in words, or empty.
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

    def network(self, name: str) -> RolePlan:
        """The network of that name. Raises ``KeyError``."""
        return {network.name: network for network in self.networks}[name]

    @property
    def flops(self) -> float:
        """Floating-point operations of the whole run."""
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
                parts = {name: getattr(network, name) for name in ("weights", "gradients", "optimizer", "average")}
                kinds.update(parts)
            else:
                kinds[network.name] = network.memory
        return {**kinds, "activations": self.activations, "buckets": self.buckets}


def warnings_for(plan: Plan, config: RunConfig, objective: Objective, reason: str) -> tuple[str, ...]:
    """Memory that will not do, passes that a setting adds, and figures that are not exact; ``reason``: why not."""
    found = []
    if plan.free is not None and plan.total > plan.free:
        found.append(_too_large(plan, plan.free, config))
    if plan.accumulation > 1 and objective.uses_batch_means:
        found.append(
            "This objective needs means over the whole batch: with accumulation, every micro-batch is passed once "
            "more without gradient."
        )
    if plan.extrapolated_from is not None:
        found.append(
            f"This run could not be planned without running it ({reason}). A few real steps of up to "
            f"{plan.extrapolated_from} rows were measured instead; activations, peak and operations for {plan.rows} "
            "rows are extrapolated from them."
        )
    return tuple(found)


def _too_large(plan: Plan, free: int, config: RunConfig) -> str:
    fixed = sum(network.memory for network in plan.networks) + plan.buckets
    text = (
        f"A step needs about {plan.total / _GIB:.1f} GiB, but {free / _GIB:.1f} GiB are free on this machine "
        f"({plan.device})."
    )
    if fixed > free:
        return f"{text} Weights, gradients and optimizer alone take {fixed / _GIB:.1f} GiB: use a smaller student."
    ways = []
    if not config.runtime.activation_checkpointing:
        ways.append("runtime.activation_checkpointing=true")
    if plan.rows > 1:
        share = plan.rows * plan.accumulation  # of the batch, this process's
        more = next(n for n in range(plan.accumulation + 1, share + 1) if share % n == 0)
        ways.append(f"training.accumulation={more} or more")
    if config.runtime.precision != "bf16":
        ways.append("runtime.precision=bf16")
    return f"{text} To save memory: {', '.join(ways)}." if ways else text
