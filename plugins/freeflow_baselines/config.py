"""Options of the published objectives. Defaults are the papers', for ImageNet where those differ, or say `ours`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from freeflow_core.config import ComponentChoice, ComponentConfig, OptimizerConfig
from freeflow_core.objective_kit.options import DerivativeOptions, GuidanceOptions, Interval, defaults_by


class FlowMatchingConfig(ComponentConfig):
    """Instantaneous velocity from data: trains a teacher.

    Source: Lipman et al. 2022, arXiv 2210.02747; Ma et al. 2024 (SiT), arXiv 2401.08740
    """

    time_distribution: Literal["uniform", "logit-normal"] = "uniform"
    """Distribution of t: uniform (SiT) or logit-normal (Stable Diffusion 3)."""
    time_location: float = Field(0.0, ge=-10, le=10, description="logit-normal: mean of logit(t); above 0: more noise.")
    time_scale: PositiveFloat = Field(1.0, le=10, description="logit-normal: standard deviation of logit(t).")
    label_dropout: float = Field(0.1, ge=0, le=1)
    """Share of labels replaced by the null class, which classifier-free guidance needs; 0: none."""


class VelocityOptions(GuidanceOptions):
    """Where the velocity comes from."""

    velocity: Literal["teacher", "data"] = "teacher"
    """teacher: its field, guided where asked. data: each sample's own n - x, no teacher."""


class UnguidedDataOptions(VelocityOptions):
    """Objectives whose papers guide a teacher alone."""

    @model_validator(mode="after")
    def _check_velocity(self) -> UnguidedDataOptions:
        if self.velocity == "data" and self.guided:
            raise ValueError("guidance needs velocity: teacher; with velocity: data leave guidance_min and _max at 1")
        return self


CONSISTENCY_RECIPES: dict[str, dict[str, Any]] = {
    "cm": {
        "neighbour": "grid",
        "solver": "heun",
        "start_steps": None,
        "num_steps": 40,
        "times": "uniform",
        "weighting": "none",
        "distance": "squared",
        "target_halflife_images": 27_700,
    },
    "ict": {"neighbour": "grid", "solver": "heun"},
    "ect": {},
}
"""What a recipe changes of the defaults, which are ECT's."""


class ConsistencyConfig(UnguidedDataOptions):
    """Discrete consistency: neighbours on a trajectory name one end point; three recipes.

    Source: Song et al. 2023, arXiv 2303.01469; iCT: Song & Dhariwal 2023, arXiv 2310.14189; ECT: Geng et al. 2024,
    arXiv 2406.14548
    """

    recipe: Literal["cm", "ict", "ect"] = "ect"
    """Sets what is not given. cm: Song et al. 2023, ImageNet 64; ict: Song & Dhariwal 2023; ect: Geng et al. 2024."""
    neighbour: Literal["grid", "mapping"] = "mapping"
    """Where r lies: grid: the next time of N intervals; mapping: sigma_r / sigma_t as ECT."""
    num_steps: int = Field(1280, ge=2, le=10_000, description="grid: N, intervals (iCT: 1280; cm: 40, CIFAR-10 18).")
    start_steps: int | None = Field(10, ge=2)
    """grid: N at first, doubled up to num_steps in equal parts of the run (iCT: 10); null: num_steps throughout."""
    grid: Literal["karras", "uniform"] = "karras"
    """karras: equal steps in sigma^(1/rho), t = sigma / (1 + sigma); uniform: equal in t (ours)."""
    rho: PositiveFloat = Field(7.0, description="karras: exponent of the grid.")
    sigma_min: PositiveFloat = Field(0.002, description="karras: least noise over signal; ours: its time becomes 0.")
    sigma_max: PositiveFloat = 80.0
    """karras: greatest noise over signal; ours: its time becomes 1, where sampling starts."""
    stages: PositiveInt = Field(8, le=20)
    """mapping: sigma_r = sigma_t (1 - n(sigma_t) / q^stage), the stage rising to this (ECT: 8)."""
    stage_base: float = Field(2.0, gt=1, description="mapping: q (ECT: 2; ImageNet 64: 4).")
    times: Literal["uniform", "lognormal"] = "lognormal"
    """grid: each interval alike often, or as log(sigma) is normal; mapping is lognormal."""
    time_location: float = Field(-1.1, ge=-10, le=10, description="lognormal: mean of log(sigma) (iCT, ECT: -1.1).")
    time_scale: PositiveFloat = Field(2.0, le=10, description="lognormal: its deviation (iCT, ECT: 2).")
    solver: Literal["heun", "euler"] = "euler"
    """The teacher's step from t to r, taken in t (cm, ict: heun, with which ect diverges: its first steps end at 0)."""
    weighting: Literal["interval", "none"] = "interval"
    """interval: 1 / (t - r) (iCT, ECT: of their sigma); none: 1 (cm)."""
    distance: Literal["squared", "huber"] = "squared"
    """squared: mean square (cm; ours with a teacher); huber: sqrt(|.|^2 + c^2) - c (iCT, ECT; default from data)."""
    huber_constant: PositiveFloat = Field(0.00054, description="c / sqrt(dim) of huber (iCT: 0.00054).")
    target_halflife_images: PositiveFloat | None = None
    """Half-life of the target network's average (cm: 27,700); null: the student's current weights (iCT, ECT)."""

    @model_validator(mode="before")
    @classmethod
    def _lay_over_recipe(cls, values: Any) -> Any:
        return defaults_by(
            defaults_by(values, "recipe", CONSISTENCY_RECIPES), "velocity", {"data": {"distance": "huber"}}
        )

    @model_validator(mode="after")
    def _check_grid(self) -> ConsistencyConfig:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min={self.sigma_min:g} must be below sigma_max={self.sigma_max:g}")
        return self


class ContinuousConsistencyConfig(UnguidedDataOptions, DerivativeOptions):
    """Continuous consistency (sCM): normalised tangent with warm-up and a learned weight of time.

    Source: Lu and Song 2024, arXiv 2410.11081
    """

    time_location: float = Field(-1.0, ge=-10, le=10, description="Mean of log(sigma), sigma = t / (1 - t) (paper).")
    time_scale: PositiveFloat = Field(1.4, le=10, description="Its deviation (paper: CIFAR-10 1.4, ImageNet 64 1.6).")
    data_std: PositiveFloat = Field(0.5, description="sigma_d: deviation of the data that TrigFlow scales by.")
    tangent_warmup_fraction: float = Field(0.025, ge=0, le=1)
    """Share of the run over which the tangent's unstable part rises from 0 (paper: 10k of 400k steps)."""
    tangent_normalisation: Literal["norm", "rms", "clip", "none"] = "norm"
    """norm: g / (|g| + c) (paper); rms: the same with |g| / sqrt(dim) (FastGen); clip: to [-1, 1]."""
    tangent_constant: PositiveFloat = Field(0.1, description="c of the normalisation (paper: 0.1).")
    prior_weight: bool = Field(True, description="Multiply by 1 / sigma (paper).")
    weighting: Literal["learned", "none"] = "learned"
    """learned: exp(-w(t)) L + w(t) with a small network w beside the student (paper)."""


class FACMConfig(UnguidedDataOptions, DerivativeOptions):
    """Continuous consistency anchored by flow matching on the same network.

    Defaults are those of the authors' code.

    Source: Peng et al. 2025, arXiv 2507.03738
    """

    time_location: float = Field(-0.8, ge=-10, le=10, description="Mean of log(a), t = 2/pi atan(a) (paper: -0.8).")
    time_scale: PositiveFloat = Field(1.6, le=10, description="Its deviation (paper: 1.6).")
    relaxation_power: float = Field(0.5, gt=0, le=4, description="p: the target moves by 1 - (1 - t)^p (paper: 0.5).")
    tangent_clip: PositiveFloat = Field(1.0, description="The step of the target is clamped to this (paper: 1).")
    weight_power: float = Field(0.5, ge=0, le=2, description="Consistency loss e / (e + c)^power (paper: 0.5).")
    weight_epsilon: PositiveFloat = Field(1e-3, description="c of the same (paper: 1e-3).")
    anchor_weight: float = Field(1.0, ge=0, description="Weight of the flow-matching anchor (paper: 1); 0: collapses.")
    cosine_weight: float = Field(1.0, ge=0, description="Weight of the anchor's 1 - cosine over channels (paper: 1).")


class ShortcutConfig(VelocityOptions):
    """Shortcut models: one step equals two of half its size; the rest is flow matching.

    Defaults are those of the authors' code.

    Source: Frans et al. 2024, arXiv 2410.12557
    """

    base_steps: int = Field(128, description="M: the finest grid; a power of two (paper: 128).")
    bootstrap_share: float = Field(0.125, gt=0, lt=1)
    """Share of rows that learn one step from two of half its size (code: 1/8)."""
    clip: PositiveFloat | None = Field(4.0, description="Targets and mid states are clamped to +-clip (code: 4); null.")
    label_dropout: float = Field(0.1, ge=0, le=1, description="velocity: data: share of labels dropped (paper: 0.1).")
    target_halflife_images: PositiveFloat | None = 177_000
    """Half-life of the network that gives targets (code: 0.999 a step of 256); null: the student's own weights."""

    @model_validator(mode="after")
    def _check_steps(self) -> ShortcutConfig:
        if self.base_steps < 2 or self.base_steps & (self.base_steps - 1):
            raise ValueError(f"base_steps must be a power of two, at least 2, got {self.base_steps}")
        if self.velocity == "data" and self.guided and self.label_dropout == 0:
            raise ValueError("guidance from data needs the null class: set label_dropout above 0")
        return self


class FlowMapOptions(UnguidedDataOptions, DerivativeOptions):
    """What Lagrangian and Eulerian distillation have in common."""

    instant_share: float = Field(0.75, ge=0, lt=1)
    """Share of rows with s = t, which regress u(x_t, t, t) on the velocity (2505.18825)."""
    times: Literal["triangle", "duration"] = "triangle"
    """triangle: 0 < s < t < 1 uniform; duration: t - s logit-normal, s uniform below (AYF)."""
    duration_location: float = Field(0.0, ge=-10, le=10, description="duration: mean of logit(t - s) (ours: 0).")
    duration_scale: PositiveFloat = Field(1.0, le=10, description="duration: deviation of logit(t - s) (ours: 1).")
    weighting: Literal["learned", "none"] = "learned"
    """learned: exp(-w(t, s)) L + w(t, s), L a sum, with a small network w (2505.18825); none: L a mean."""


class LagrangianConfig(FlowMapOptions):
    """Lagrangian map distillation: dX/ds follows the velocity at X; from data, or data-free.

    Source: Boffi et al. 2024, arXiv 2406.07507; Boffi et al. 2025, arXiv 2505.18825
    """

    instant_share: float = Field(0.0, ge=0, lt=1)
    """Share of rows with s = t, which regress u(x_t, t, t) on the velocity; velocity: data: 0.75 unless given
    (2505.18825), for then nothing else says what it is."""
    start: Literal["data", "prior"] = "data"
    """data: states on noised data, any t. prior: t = 1 alone, data-free; instant_share is not used."""
    gradient: Literal["derivative", "target"] = "derivative"
    """derivative: the gradient flows through du/ds (paper's LSD), by differences in one gradient pass; target: du/ds is
    part of the target, cheaper."""

    @model_validator(mode="before")
    @classmethod
    def _instants_from_data(cls, values: Any) -> Any:
        return defaults_by(values, "velocity", {"data": {"instant_share": 0.75}})

    @model_validator(mode="after")
    def _check_start(self) -> LagrangianConfig:
        if self.start == "prior" and self.velocity == "data":
            raise ValueError("start: prior sees no data, so it needs velocity: teacher")
        return self


class EulerianConfig(FlowMapOptions):
    """Eulerian map distillation: X stays while its start slides along the path; AYF-EMD by options.

    Source: Boffi et al. 2024, arXiv 2406.07507; Sabour et al. 2025 (AYF), arXiv 2506.14603
    """

    gradient: Literal["full", "time", "target"] = "target"
    """full: through the whole derivative (EMD); time: through d/dt alone (ESD); target: the derivative is part of the
    target (AYF-EMD). full is unstable (its authors)."""
    tangent_normalisation: bool = Field(False, description="gradient: target: move by g / (|g| + c) (AYF: true).")
    tangent_constant: PositiveFloat = Field(0.1, description="c of the normalisation (AYF: 0.1).")
    tangent_warmup_fraction: float = Field(0.0, ge=0, le=1)
    """gradient: target: share of the run over which du/dt rises from 0."""
    tangent_warmup_end: float = Field(1.0, gt=0, le=1, description="Where that rise ends (AYF: 0.99).")

    @model_validator(mode="after")
    def _check_tangent(self) -> EulerianConfig:
        changed = self.tangent_normalisation or self.tangent_warmup_fraction or self.tangent_warmup_end != 1
        if self.gradient != "target" and changed:
            raise ValueError("tangent_normalisation and tangent_warmup need gradient: target")
        return self


class PiFlowConfig(GuidanceOptions):
    """A policy in closed form imitates the teacher where it leads; for policy students.

    Defaults are those of the paper's code for ImageNet unless said otherwise.

    Source: pi-Flow: Chen et al. 2025, arXiv 2510.14974
    """

    states: Literal["data", "prior"] = "data"
    """Where segments begin: data: at noised data (the paper's recipe for ImageNet); prior: at noise, each next one
    where the student's own path ends, without any data."""
    num_segments: PositiveInt = Field(1, le=64)
    """Network evaluations of a whole sample; the segments cover [0, 1]. The paper: 1, 2, 4."""
    final_segment_scale: float = Field(1.0, gt=0, le=1)
    """Length of the segment at the data over that of the others; 0.5 for text-to-image."""
    num_states: PositiveInt = Field(2, le=64, description="States of a path where the teacher is imitated; 4 for FLUX.")
    component_dropout: float = Field(0.05, ge=0, lt=1)
    """Share of the mixture's components left out while states are reached, for exploration; 0.1 for text-to-image.
    Policies without components ignore it."""
    loss_scale: PositiveFloat = Field(3.0, description="Factor of the loss; 30 for text-to-image.")


class IMMConfig(UnguidedDataOptions):
    """Inductive moment matching: a kernel compares jumps from two noise levels; from data.

    Defaults are those of the paper for ImageNet unless said otherwise.

    Source: IMM: Zhou et al. 2025, arXiv 2503.07565
    """

    velocity: Literal["teacher", "data"] = "data"
    """How the state at r follows from that at t: data: the same sample and noise at r, without a teacher, as published;
    teacher: one Euler step of the (guided) teacher, ours."""
    group_size: int = Field(4, ge=1, le=256, description="M, rows that share times and are compared; 1: consistency.")
    statistic: Literal["v", "u"] = "v"
    """v: all pairs, as published, whose mean is not 0 at the solution; u: pairs of different rows only, which is
    unbiased but noisier (ours; needs group_size >= 2)."""
    time_high: float = Field(0.994, gt=0, lt=1, description="t is uniform on (0, time_high); s uniform on (0, t).")
    gap_exponent: float = Field(12.0, ge=1, le=30)
    """k: r lies 2^-k of the greatest noise-to-data ratio t / (1 - t) below t's own; 15 for CIFAR-10."""
    gap_min: float = Field(1e-4, ge=0, lt=0.1, description="t - r is at least this where s allows it.")
    weight_offset: float = Field(4.0, ge=-20, le=20, description="b of the weight sigmoid(b - log SNR); CIFAR-10: 5.")
    weight_power: float = Field(1.0, ge=0, le=4, description="a of the weight's factor (1 - t)^a; 1 or 2.")
    kernel_scale: PositiveFloat = 1.0
    """Width of the kernel exp(-|x - y| / (scale (t - s) dim)). The paper's: the noise's deviation, here 1."""
    label_kernel: Literal["any", "same"] = "any"
    """any: rows of a group are compared whatever their labels, as published; same: only rows with equal labels (ours,
    for few classes and large groups)."""
    label_dropout: float = Field(0.1, ge=0, le=1, description="Share of labels dropped; without a teacher only.")

    @model_validator(mode="after")
    def _check_groups(self) -> IMMConfig:
        if self.statistic == "u" and self.group_size < 2:
            raise ValueError("statistic=u compares different rows of a group and needs group_size >= 2")
        return self


class PairOptions(GuidanceOptions):
    """How pairs of a noise and the teacher's end point are made and compared."""

    solver: Literal["euler", "heun"] = Field("heun", description="The teacher's method; heun asks it twice a step.")
    solver_steps: PositiveInt = Field(32, le=10_000, description="Its steps, equal in t (ours; the papers' adapt).")
    distance: ComponentChoice | None = None
    """A distance of end points as images, e.g. perceptual or {name: perceptual, features: mnist}: the papers' LPIPS;
    null: the mean square of states alone."""
    square_weight: float = Field(0.0, ge=0, description="With distance: factor of the mean square added (papers: 0).")


class ScoreDistillationConfig(PairOptions):
    """VSD and DMD: one-step samples follow the teacher's score less their own; without data.

    The options of pairs belong to DMD's regression.

    Source: VSD: Wang et al. 2023, arXiv 2305.16213; DMD: Yin et al. 2023, arXiv 2311.18828
    """

    weighting: Literal["dmd", "vsd", "velocity"] = "dmd"
    """Factor of v - v_fake in the sample's gradient. dmd: t over the mean absolute x - x_0(teacher); vsd: sigma^2 (1 -
    t) with sigma^2 = t^2 / (t^2 + (1 - t)^2); velocity: 1 (as FreeFlow's corrector)."""
    regression_weight: float = Field(0.0, ge=0)
    """Factor of the regression on the teacher's end points (DMD: 0.25; VSD, DMD2: 0)."""
    critic_updates: PositiveInt = Field(5, le=1000)
    """Updates of the fake velocity to one of the student; 5 as DMD2, 1 as VSD and DMD."""
    time_distribution: Literal["uniform", "edm"] = "uniform"
    """Noise levels: uniform in t, as DMD and VSD for Stable Diffusion; edm: uniform on the rho = 7 grid of 0.002 ... 80
    in t / (1 - t), as DMD for ImageNet."""
    time_low: float = Field(0.02, ge=0, lt=1, description="Least noise level, as a share of the range.")
    time_high: float = Field(0.98, gt=0, le=1, description="Greatest noise level, as a share of the range.")
    critic_times: Interval | None = None
    """The fake velocity's own levels (low, high), drawn apart from the student's, whose turn then costs one more pass
    (DMD: 0, 1); null: one draw serves both."""
    critic_weighting: Literal["velocity", "edm"] = "velocity"
    """The fake velocity's loss: velocity: flow matching's; edm: times (1 - t)^2 + t^2 / sd^2."""
    data_std: PositiveFloat = Field(0.5, description="critic_weighting: edm: sd, deviation of the data (DMD: 0.5).")
    fake_velocity_optimizer: OptimizerConfig | None = None
    """The fake velocity's own, complete optimizer settings; null: those of the run."""

    @model_validator(mode="after")
    def _check_times(self) -> ScoreDistillationConfig:
        for low, high in ((self.time_low, self.time_high), self.critic_times or (0.0, 1.0)):
            if low >= high:
                raise ValueError(f"noise levels must rise, got {low:g} to {high:g}")
        if self.distance is not None and self.regression_weight == 0:
            raise ValueError("distance is part of the regression; set regression_weight too")
        return self


class PairsConfig(PairOptions):
    """Knowledge distillation or rectified flow on pairs of noise and the teacher's end point.

    Source: Luhman & Luhman 2021, arXiv 2101.02388; Liu et al. 2022, arXiv 2209.03003
    """

    mode: Literal["endpoint", "rectified-flow"] = "endpoint"
    """endpoint: regress the end point in one jump (knowledge distillation); rectified-flow: regress the straight
    velocity between the two at every time (one reflow)."""

    @model_validator(mode="after")
    def _check_distance(self) -> PairsConfig:
        if self.mode == "rectified-flow" and self.distance is not None:
            raise ValueError("rectified-flow regresses velocities, which are no images; distance needs mode: endpoint")
        return self


class ProgressiveConfig(GuidanceOptions):
    """One step learns to replace two of its predecessor, round by round.

    Source: Salimans & Ho 2022, arXiv 2202.00512
    """

    start_steps: int = Field(16, ge=1, le=2**16)
    """The student's steps in the first round, a power of two, half the teacher's. Ours; the paper: 1024 or 8192."""
    final_steps: int = Field(1, ge=1, le=2**16, description="Steps of the student in the last round, a power of two.")
    round_images: tuple[PositiveInt, ...] | None = Field(None, min_length=1)
    """Length of each round in images, one number a round; the last goes on to the end of the run. null: equal shares of
    the run. The paper: 50 000 steps a round."""
    states: Literal["data", "prior"] = "data"
    """data: noised data, as the paper; prior: the student's own path from noise, at the cost of its steps (ours)."""

    @property
    def num_rounds(self) -> int:
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
