"""Options of the objectives that roll, pair, halve or match distributions. Formulas: this plugin's README.md."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from freeflow_baselines.config import GuidanceOptions, UnguidedDataOptions
from freeflow_core.config import OptimizerConfig


class PiFlowConfig(GuidanceOptions):
    """Options of pi-Flow. Defaults are those of the paper's code for ImageNet unless said otherwise."""

    states: Literal["data", "prior"] = Field(
        "data",
        description="Where segments begin: data: at noised data (the paper's recipe for ImageNet); prior: at noise, "
        "each next one where the student's own path ends, without any data.",
    )
    num_segments: PositiveInt = Field(
        1, le=64, description="Network evaluations of a whole sample; the segments cover [0, 1]. The paper: 1, 2, 4."
    )
    final_segment_scale: float = Field(
        1.0, gt=0, le=1, description="Length of the segment at the data over that of the others; 0.5 for text-to-image."
    )
    num_states: PositiveInt = Field(
        2, le=64, description="States of a path at which the teacher is imitated; 4 for FLUX."
    )
    component_dropout: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Share of the mixture's components left out while states are reached, for exploration; 0.1 for "
        "text-to-image. Policies without components ignore it.",
    )
    loss_scale: PositiveFloat = Field(3.0, description="Factor of the loss; 30 for text-to-image.")


class IMMConfig(UnguidedDataOptions):
    """Options of inductive moment matching. Defaults are those of the paper for ImageNet unless said otherwise."""

    velocity: Literal["teacher", "data"] = Field(
        "data",
        description="How the state at r follows from that at t: data: the same sample and noise at r, without a "
        "teacher, as published; teacher: one Euler step of the (guided) teacher, this project's addition.",
    )
    group_size: int = Field(
        4, ge=1, le=256, description="M, rows that share times and are compared; 1: a consistency loss."
    )
    statistic: Literal["v", "u"] = Field(
        "v",
        description="v: all pairs, as published, whose mean is not 0 at the solution; u: pairs of different rows "
        "only, which is unbiased but noisier (this project's addition; needs group_size >= 2).",
    )
    time_high: float = Field(0.994, gt=0, lt=1, description="t is uniform on (0, time_high); s uniform on (0, t).")
    gap_exponent: float = Field(
        12.0,
        ge=1,
        le=30,
        description="k: r lies 2^-k of the greatest noise-to-data ratio t / (1 - t) below t's own; 15 for CIFAR-10.",
    )
    gap_min: float = Field(1e-4, ge=0, lt=0.1, description="t - r is at least this where s allows it.")
    weight_offset: float = Field(
        4.0, ge=-20, le=20, description="b of the weight sigmoid(b - log SNR); 5 for CIFAR-10."
    )
    weight_power: float = Field(1.0, ge=0, le=4, description="a of the weight's factor (1 - t)^a; 1 or 2.")
    kernel_scale: PositiveFloat = Field(
        1.0,
        description="Width of the kernel exp(-|x - y| / (scale (t - s) dim)). The paper's is the noise's deviation, "
        "which is 1 here.",
    )
    label_kernel: Literal["any", "same"] = Field(
        "any",
        description="any: rows of a group are compared whatever their labels, as published; same: only rows with "
        "equal labels (this project's addition, for few classes and large groups).",
    )
    label_dropout: float = Field(
        0.1, ge=0, le=1, description="Share of labels replaced by the null class; without a teacher only."
    )

    @model_validator(mode="after")
    def _check_groups(self) -> IMMConfig:
        if self.statistic == "u" and self.group_size < 2:
            raise ValueError("statistic=u compares different rows of a group and needs group_size >= 2")
        return self


class ScoreDistillationConfig(GuidanceOptions):
    """Options of score distillation."""

    weighting: Literal["dmd", "vsd", "velocity"] = Field(
        "dmd",
        description="Factor of v - v_fake in the sample's gradient. dmd: t over the mean absolute x - x_0(teacher); "
        "vsd: sigma^2 (1 - t) with sigma^2 = t^2 / (t^2 + (1 - t)^2); velocity: 1 (this project's corrector).",
    )
    critic_updates: PositiveInt = Field(
        5, le=1000, description="Updates of the fake velocity to one of the student; 5 as DMD2, 1 as VSD and DMD."
    )
    time_distribution: Literal["uniform", "edm"] = Field(
        "uniform",
        description="Noise levels: uniform in t, as DMD and VSD for Stable Diffusion; edm: uniform on the rho = 7 grid "
        "of 0.002 ... 80 in t / (1 - t), as DMD for ImageNet.",
    )
    time_low: float = Field(0.02, ge=0, lt=1, description="Least noise level, as a share of the range.")
    time_high: float = Field(0.98, gt=0, le=1, description="Greatest noise level, as a share of the range.")
    fake_velocity_optimizer: OptimizerConfig | None = Field(
        None, description="The fake velocity's own, complete optimizer settings; null: those of the run."
    )

    @model_validator(mode="after")
    def _check_times(self) -> ScoreDistillationConfig:
        if self.time_low >= self.time_high:
            raise ValueError(f"time_low={self.time_low:g} must be below time_high={self.time_high:g}")
        return self


class TrajectoryOptions(GuidanceOptions):
    """How the teacher's trajectory is followed."""

    solver: Literal["euler", "heun"] = Field("heun", description="The teacher's method; heun asks it twice a step.")
    solver_steps: PositiveInt = Field(
        32, le=10_000, description="Its steps, equal in t (this project's choice; the papers' solvers adapt theirs)."
    )


class PairsConfig(TrajectoryOptions):
    """Options of training on pairs of noise and the teacher's end point."""

    mode: Literal["endpoint", "rectified-flow"] = Field(
        "endpoint",
        description="endpoint: regress the end point in one jump (knowledge distillation); rectified-flow: regress "
        "the straight velocity between the two at every time (one reflow).",
    )
    cache: Path | None = Field(
        None,
        description="File of pairs to train on, written by freeflow_baselines.pair_cache.write_pairs, whose guidance "
        "and solver were chosen there; null: pairs are made anew in every step.",
    )

    @model_validator(mode="after")
    def _check_cache(self) -> PairsConfig:
        own = TrajectoryOptions.model_fields
        changed = [name for name in own if getattr(self, name) != own[name].default]
        if self.cache is not None and changed:
            raise ValueError(f"{', '.join(changed)}: chosen when the cache was written; leave out, or leave out cache")
        return self


class ProgressiveConfig(GuidanceOptions):
    """Options of progressive distillation."""

    start_steps: int = Field(
        16,
        ge=1,
        le=2**16,
        description="Steps of the student in the first round, a power of two; the teacher then takes twice as many. "
        "The paper starts at 1024 or 8192 (this project's choice).",
    )
    final_steps: int = Field(1, ge=1, le=2**16, description="Steps of the student in the last round, a power of two.")
    round_images: tuple[PositiveInt, ...] | None = Field(
        None,
        min_length=1,
        description="Length of each round in images, one number a round; the last goes on to the end of the run. null: "
        "equal shares of the run. The paper: 50 000 steps a round.",
    )
    states: Literal["data", "prior"] = Field(
        "data",
        description="data: noised data, as the paper; prior: the student's own path from noise, at the cost of its "
        "steps (this project's addition).",
    )

    @property
    def num_rounds(self) -> int:
        """Rounds from ``start_steps`` to ``final_steps``."""
        return (self.start_steps // self.final_steps).bit_length()

    @model_validator(mode="after")
    def _check_rounds(self) -> ProgressiveConfig:
        for name in ("start_steps", "final_steps"):
            steps = getattr(self, name)
            if steps & (steps - 1):
                raise ValueError(f"{name}={steps} must be a power of two: 1, 2, 4, ...")
        if self.final_steps > self.start_steps:
            raise ValueError(f"final_steps={self.final_steps} exceeds start_steps={self.start_steps}")
        if self.round_images is not None and len(self.round_images) != self.num_rounds:
            raise ValueError(
                f"round_images has {len(self.round_images)} entries, expected one for each of the {self.num_rounds} "
                f"rounds from {self.start_steps} to {self.final_steps} steps"
            )
        return self
