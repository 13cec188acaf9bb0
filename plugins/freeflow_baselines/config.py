"""Options of the objectives that learn a velocity or a flow map. Defaults are the papers', unless they say `ours`."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, model_validator

from freeflow_core.config import ComponentConfig

UnitTime = Annotated[float, Field(ge=0, le=1)]
Interval = tuple[UnitTime, UnitTime]


class TimeDistribution(str, Enum):
    """How training times are drawn on (0, 1); t = 0 is data, t = 1 noise."""

    UNIFORM = "uniform"
    LOGIT_NORMAL = "logit-normal"


class FlowMatchingConfig(ComponentConfig):
    """Options of flow matching."""

    time_distribution: TimeDistribution = Field(
        TimeDistribution.UNIFORM, description="Distribution of t: uniform (SiT) or logit-normal (Stable Diffusion 3)."
    )
    time_location: float = Field(
        0.0, ge=-10, le=10, description="logit-normal: mean of logit(t); above 0 favours noise, below 0 data."
    )
    time_scale: PositiveFloat = Field(1.0, le=10, description="logit-normal: standard deviation of logit(t).")
    label_dropout: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share of labels replaced by the null class, which classifier-free guidance needs; 0: none.",
    )


class GuidanceOptions(ComponentConfig):
    """Guidance, as FreeFlow has it, so that objectives are compared on equal terms."""

    guidance_min: float = Field(
        1.0, ge=0, le=100, description="Least guidance weight g; each example draws its own, uniform in [min, max]."
    )
    guidance_max: float = Field(
        1.0, ge=0, le=100, description="Greatest guidance weight; equal to guidance_min for a fixed one, 1: unguided."
    )
    guidance_interval: Interval = Field(
        (0.0, 1.0), description="Times (low, high) in which the teacher's field is guided; unguided outside."
    )

    @model_validator(mode="after")
    def _check_guidance(self) -> GuidanceOptions:
        if self.guidance_min > self.guidance_max:
            raise ValueError(f"guidance_min={self.guidance_min:g} exceeds guidance_max={self.guidance_max:g}")
        if self.guidance_interval[0] > self.guidance_interval[1]:
            raise ValueError(f"guidance_interval must rise, got {list(self.guidance_interval)}")
        return self

    @property
    def guided(self) -> bool:
        """Whether any weight differs from 1."""
        return (self.guidance_min, self.guidance_max) != (1.0, 1.0)


class VelocityOptions(GuidanceOptions):
    """Where the velocity comes from."""

    velocity: Literal["teacher", "data"] = Field(
        "teacher", description="teacher: its field, guided where asked. data: each sample's own n - x, no teacher."
    )


class UnguidedDataOptions(VelocityOptions):
    """Objectives whose papers guide a teacher alone."""

    @model_validator(mode="after")
    def _check_velocity(self) -> UnguidedDataOptions:
        if self.velocity == "data" and self.guided:
            raise ValueError("guidance needs velocity: teacher; with velocity: data leave guidance_min and _max at 1")
        return self


class DerivativeOptions(ComponentConfig):
    """How the network is differentiated."""

    derivative: Literal["forward-mode", "central", "one-sided"] = Field(
        "forward-mode",
        description="forward-mode: exact, math attention; central: two passes, fused attention; one-sided: one pass, "
        "reuses the gradient pass, which must not run in bf16.",
    )
    derivative_step: float = Field(
        5e-3, ge=1e-6, le=0.1, description="Step in time of central and one-sided differences."
    )


class ConsistencyConfig(UnguidedDataOptions):
    """Options of discrete consistency models (Song et al. 2023, arXiv 2303.01469; the authors' ImageNet 64 run)."""

    num_steps: int = Field(40, ge=2, le=10_000, description="N: intervals of the time grid (paper: 40; CIFAR-10 18).")
    grid: Literal["karras", "uniform"] = Field(
        "karras",
        description="karras: equal steps in sigma^(1/rho), t = sigma / (1 + sigma); uniform: equal in t (ours).",
    )
    rho: PositiveFloat = Field(7.0, description="karras: exponent of the grid.")
    sigma_min: PositiveFloat = Field(0.002, description="karras: least noise over signal; ours: its time becomes 0.")
    sigma_max: PositiveFloat = Field(
        80.0, description="karras: greatest noise over signal; ours: its time becomes 1, where sampling starts."
    )
    solver: Literal["heun", "euler"] = Field("heun", description="The teacher's step from t to r, taken in t.")
    distance: Literal["squared", "huber"] = Field(
        "squared", description="squared: mean square; huber: sqrt(|.|^2 + c^2) - c (Song & Dhariwal 2023)."
    )
    huber_constant: PositiveFloat = Field(0.00054, description="c / sqrt(dim) of huber (2310.14189: 0.00054).")
    target_halflife_images: PositiveFloat | None = Field(
        27_700,
        description="Half-life of the target network's average (paper: 0.95 a step of 2048 images); null: the "
        "student's own current weights (iCT).",
    )

    @model_validator(mode="after")
    def _check_grid(self) -> ConsistencyConfig:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min={self.sigma_min:g} must be below sigma_max={self.sigma_max:g}")
        return self


class ContinuousConsistencyConfig(UnguidedDataOptions, DerivativeOptions):
    """Options of continuous consistency models, sCM (Lu & Song 2024, arXiv 2410.11081)."""

    time_location: float = Field(
        -1.0, ge=-10, le=10, description="Mean of log(sigma), sigma = t / (1 - t) (paper: -1)."
    )
    time_scale: PositiveFloat = Field(
        1.4, le=10, description="Its deviation (paper: 1.4 on CIFAR-10, 1.6 ImageNet 64)."
    )
    data_std: PositiveFloat = Field(0.5, description="sigma_d: deviation of the data that TrigFlow scales by.")
    tangent_warmup_fraction: float = Field(
        0.025,
        ge=0,
        le=1,
        description="Share of the run over which the tangent's unstable part rises from 0 (paper: 10k of 400k steps).",
    )
    tangent_normalisation: Literal["norm", "rms", "clip", "none"] = Field(
        "norm",
        description="norm: g / (|g| + c) (paper); rms: the same with |g| / sqrt(dim) (FastGen); clip: to [-1, 1].",
    )
    tangent_constant: PositiveFloat = Field(0.1, description="c of the normalisation (paper: 0.1).")
    prior_weight: bool = Field(True, description="Multiply by 1 / sigma (paper).")
    weighting: Literal["learned", "none"] = Field(
        "learned", description="learned: exp(-w(t)) L + w(t) with a small network w beside the student (paper)."
    )


class FACMConfig(UnguidedDataOptions, DerivativeOptions):
    """Options of flow-anchored consistency models (Peng et al. 2025, arXiv 2507.03738; the authors' code)."""

    time_location: float = Field(-0.8, ge=-10, le=10, description="Mean of log(a), t = 2/pi atan(a) (paper: -0.8).")
    time_scale: PositiveFloat = Field(1.6, le=10, description="Its deviation (paper: 1.6).")
    relaxation_power: float = Field(
        0.5, gt=0, le=4, description="p: the target moves the share 1 - (1 - t)^p of the way (paper: 0.5)."
    )
    tangent_clip: PositiveFloat = Field(1.0, description="The step of the target is clamped to this (paper: 1).")
    weight_power: float = Field(
        0.5, ge=0, le=2, description="Consistency loss e / (e + c)^power, e a mean (paper: 0.5)."
    )
    weight_epsilon: PositiveFloat = Field(1e-3, description="c of the same (paper: 1e-3).")
    anchor_weight: float = Field(1.0, ge=0, description="Weight of the flow-matching anchor (paper: 1); 0: collapses.")
    cosine_weight: float = Field(1.0, ge=0, description="Weight of the anchor's 1 - cosine over channels (paper: 1).")


class ShortcutConfig(VelocityOptions):
    """Options of shortcut models (Frans et al. 2024, arXiv 2410.12557; the authors' code)."""

    base_steps: int = Field(128, description="M: the finest grid; a power of two (paper: 128).")
    bootstrap_share: float = Field(
        0.125, gt=0, lt=1, description="Share of rows that learn one step from two of half its size (code: 1/8)."
    )
    clip: PositiveFloat | None = Field(4.0, description="Targets and mid states are clamped to +-clip (code: 4); null.")
    label_dropout: float = Field(
        0.1, ge=0, le=1, description="velocity: data: share of labels replaced by the null class (paper: 0.1)."
    )
    target_halflife_images: PositiveFloat | None = Field(
        177_000,
        description="Half-life of the averaged network that gives targets (code: 0.999 a step of 256 images); null: "
        "the student's own current weights.",
    )

    @model_validator(mode="after")
    def _check_steps(self) -> ShortcutConfig:
        if self.base_steps < 2 or self.base_steps & (self.base_steps - 1):
            raise ValueError(f"base_steps must be a power of two, at least 2, got {self.base_steps}")
        if self.velocity == "data" and self.guided and self.label_dropout == 0:
            raise ValueError("guidance from data needs the null class: set label_dropout above 0")
        return self


class FlowMapOptions(UnguidedDataOptions, DerivativeOptions):
    """What Lagrangian and Eulerian distillation have in common."""

    instant_share: float = Field(
        0.75,
        ge=0,
        lt=1,
        description="Share of rows with s = t, which regress u(x_t, t, t) on the velocity (2505.18825).",
    )
    times: Literal["triangle", "duration"] = Field(
        "triangle", description="triangle: 0 < s < t < 1 uniform; duration: t - s logit-normal, s uniform below (AYF)."
    )
    duration_location: float = Field(0.0, ge=-10, le=10, description="duration: mean of logit(t - s) (ours: 0).")
    duration_scale: PositiveFloat = Field(1.0, le=10, description="duration: deviation of logit(t - s) (ours: 1).")
    weighting: Literal["learned", "none"] = Field(
        "learned",
        description="learned: exp(-w(t, s)) L + w(t, s), L a sum, with a small network w beside the student "
        "(2505.18825); none: L a mean.",
    )


class LagrangianConfig(FlowMapOptions):
    """Options of Lagrangian distillation (Boffi et al. 2024, arXiv 2406.07507; 2025, 2505.18825)."""

    start: Literal["data", "prior"] = Field(
        "data",
        description="data: states on noised data, any t. prior: t = 1 alone, data-free; instant_share is not used.",
    )
    gradient: Literal["derivative", "target"] = Field(
        "derivative",
        description="derivative: the gradient flows through du/ds (paper's LSD), by differences in one gradient pass; "
        "target: du/ds is part of the target, cheaper.",
    )

    @model_validator(mode="after")
    def _check_start(self) -> LagrangianConfig:
        if self.start == "prior" and self.velocity == "data":
            raise ValueError("start: prior sees no data, so it needs velocity: teacher")
        return self


class EulerianConfig(FlowMapOptions):
    """Options of Eulerian distillation (Boffi et al. 2024, 2025) and AYF-EMD (Sabour et al. 2025, arXiv 2506.14603)."""

    gradient: Literal["full", "time", "target"] = Field(
        "target",
        description="full: through the whole derivative (EMD); time: through d/dt alone (ESD); target: the derivative "
        "is part of the target (AYF-EMD). full is unstable (its authors).",
    )
    tangent_normalisation: bool = Field(False, description="gradient: target: move by g / (|g| + c) (AYF: true).")
    tangent_constant: PositiveFloat = Field(0.1, description="c of the normalisation (AYF: 0.1).")
    tangent_warmup_fraction: float = Field(
        0.0, ge=0, le=1, description="gradient: target: share of the run over which du/dt rises from 0."
    )
    tangent_warmup_end: float = Field(1.0, gt=0, le=1, description="Where that rise ends (AYF: 0.99).")

    @model_validator(mode="after")
    def _check_tangent(self) -> EulerianConfig:
        changed = self.tangent_normalisation or self.tangent_warmup_fraction or self.tangent_warmup_end != 1
        if self.gradient != "target" and changed:
            raise ValueError("tangent_normalisation and tangent_warmup need gradient: target")
        return self
