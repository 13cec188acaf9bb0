"""The plan of a run, as numbers."""

from __future__ import annotations

from dataclasses import dataclass


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
