"""The configuration of a run. Durations are counted in images seen, so no schedule depends on the batch size."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, PrivateAttr, model_validator

from freeflow_core.config.component import ComponentChoice, Section


class OptimizerConfig(Section):
    """Adam(W) on the fused path, and the learning-rate schedule, for every role that does not bring its own."""

    learning_rate: PositiveFloat = Field(1e-4, description="Peak learning rate.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of Adam's first moment.")
    beta2: float = Field(0.95, ge=0, lt=1, description="Decay of Adam's second moment.")
    epsilon: PositiveFloat = Field(1e-8, description="Adam's denominator offset.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay (AdamW).")
    moments: Literal["full", "bf16", "8bit"] = "full"
    """Precision of Adam's two moments between steps: 8 (full, in float32), 4 or 2 bytes per weight. 8bit: a scale for
    every 256, and weights below 4,096 elements stay full; by torchao (pip install 'freeflow-distill[low-bit]'). bf16
    needs beta2 <= 0.99."""
    clip_norm: PositiveFloat | None = Field(None, description="Largest gradient norm per role; null: no clipping.")
    warmup_images: int = Field(0, ge=0, description="Images over which the rate rises linearly from 0.")
    schedule: Literal["constant", "cosine", "linear", "inverse-sqrt"] = "constant"
    """Decay after warm-up; cosine and linear reach final_fraction at the last image."""
    final_fraction: float = Field(0.0, ge=0, le=1, description="Rate at the end, as a fraction of the peak.")
    decay_images: PositiveInt | None = None
    """inverse-sqrt: images after which the rate falls; null: a tenth of the run."""

    @model_validator(mode="after")
    def _check(self) -> OptimizerConfig:
        if self.moments == "bf16" and self.beta2 > 0.99:
            raise ValueError(
                f"moments=bf16 rounds away the second moment's decay at beta2={self.beta2:g}; use beta2 <= 0.99, or "
                "moments=8bit"
            )
        return self


class EMAConfig(Section):
    """Exponential moving average of the weights, by half-life in images (Karras et al., EDM, appendix F)."""

    halflife_images: PositiveInt = Field(500_000, description="Images after which an old weight counts half.")
    rampup_ratio: float | None = Field(0.05, gt=0, description="At most this share of the images seen; null: no ramp.")


class TrainingConfig(Section):
    """How long, how large, and with what optimizer."""

    images: PositiveInt = Field(57_600, description="Training length in images (noise draws for data-free runs).")
    batch_size: PositiveInt = Field(64, description="Global batch over all processes and micro-batches.")
    accumulation: PositiveInt = Field(1, description="Micro-batches per step and process.")
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    ema: EMAConfig = Field(default_factory=EMAConfig)
    stop_at_images: PositiveInt | None = None
    """Stop early with a checkpoint after this many images; --resume goes on. Schedules keep `images`."""

    @property
    def steps(self) -> int:
        return -(-self.images // self.batch_size)


class RuntimeConfig(Section):
    """Where and in what precision the run happens."""

    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto: cuda, else mps, else cpu.")
    precision: Literal["float32", "bf16", "float64"] = "float32"
    """bf16: autocast for the networks, float32 elsewhere."""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """Of float32 matrix products and convolutions: high: TF32, where a GPU has it; medium: bf16; highest: float32.
    Differences are taken in float32 whatever it says; one-sided ones are refused with less than highest."""
    teacher_weights: Literal["run", "bf16"] = "run"
    """bf16: keep the matrices of the frozen teacher's blocks in bf16, in half the memory. A bf16 run stays the same to
    the bit; in a float32 run the teacher is rounded."""
    activation_checkpointing: bool = False
    """Recompute the student's activations in the backward pass: the same gradients with a fraction of the memory, for
    about one more forward pass."""
    sharding: Literal["none", "full", "hybrid"] = "none"
    """Divide weights, gradients, moments and averages of all networks among all processes (full), or among those of
    each machine (hybrid), instead of a copy in each (none); a process alone divides nothing."""
    offload_optimizer: bool = False
    """Keep Adam's moments in the host's memory between steps: the same weights, for moving all moments there and back
    in every step. For GPUs alone."""
    shard_size: PositiveInt | None = None
    """hybrid: processes that share one copy; null: those of one machine."""
    compile: bool = False
    """torch.compile the blocks of all networks, teacher and averages included, derivatives too; for GPUs."""
    compile_backend: str = Field("inductor", min_length=1, description="Of torch.compile; inductor needs a compiler.")
    threads: PositiveInt | None = Field(None, le=4096, description="CPU threads; null leaves torch's own choice.")
    deterministic: bool = Field(True, description="Deterministic algorithms where torch has them.")
    timeout_seconds: PositiveFloat = Field(
        3_600, le=31_536_000, description="How long one of several processes waits for the others before it gives up."
    )

    @model_validator(mode="after")
    def _check(self) -> RuntimeConfig:
        if self.shard_size is not None and self.sharding != "hybrid":
            raise ValueError("runtime.shard_size belongs to runtime.sharding=hybrid; leave it out otherwise")
        if self.teacher_weights == "bf16" and self.precision == "float64":
            raise ValueError("runtime.teacher_weights=bf16 makes no sense in a float64 run; leave it at run")
        return self


class LoggingConfig(Section):
    """How often things are read from the device and written."""

    every_images: PositiveInt = Field(1_280, description="Metrics interval: the only host sync in training.")


class CheckpointingConfig(Section):
    """How often the full state is written, and how many are kept."""

    every_images: PositiveInt | None = Field(None, description="Interval; null: at the end and on interruption only.")
    keep: PositiveInt = Field(2, description="Newest checkpoints kept.")
    asynchronous: bool = False
    """Write a copy of the state while training goes on; the last checkpoint of a run is waited for."""
    fall_back: bool = True
    """Resume from the newest whole checkpoint where a newer one is damaged; false: refuse."""


class SamplesConfig(Section):
    """Sample grids during training."""

    every_images: PositiveInt | None = Field(None, description="Interval; null: at the end only.")
    per_class: PositiveInt = Field(4, description="Samples per class in a grid.")
    max_classes: PositiveInt = Field(10, description="Classes shown at most.")


class EvaluationConfig(Section):
    """What the end of a run, and `freeflow evaluate`, measure."""

    enabled: bool = Field(True, description="Evaluate at the end of the run.")
    every_images: PositiveInt | None = Field(None, description="Evaluate the one-step student during training too.")
    single_step: bool = True
    """Compare the student with its teacher's own single step, early in the run and at its end: about 2 % of the time.
    Runs of fewer than 8,192 images, and those without a teacher, do not."""
    num_samples: PositiveInt = Field(1_000, description="Samples per row of the table.")
    num_pairs: PositiveInt | None = None
    """Of them those that scores sample by sample see (`fidelity`), drawn again from the teacher's noise; null: all.
    Such a mean needs fewer samples than a distance."""
    batch_size: PositiveInt = Field(250, description="Samples per batch.")
    evaluators: tuple[ComponentChoice, ...] | None = ()
    """Scores to compute, by name; null: those that fit the states' shape."""
    reference_sampler: ComponentChoice = Field(default_factory=lambda: ComponentChoice(name="heun"))
    """Sampler of the many-step teacher."""
    reference_steps: PositiveInt = Field(100, description="Its steps.")
    floor: bool = Field(
        True, description="Score the many-step teacher on other noise against itself: the noise floor of the table."
    )
    cache: bool = Field(
        True, description="Keep the many-step teacher's samples in the cache folder, and take them from there."
    )
    teacher_samples: str | None = Field(
        None, description="File with such samples, a path or PACKAGE:PATH; taken where its settings are the run's."
    )
    jump_to: float = Field(0.5, gt=0, lt=1, description="Student jump 1 -> s before the teacher takes over.")
    jump_steps: PositiveInt = Field(4, description="Teacher steps after the jump.")
    few_steps: tuple[PositiveInt, ...] = (2, 4)
    """Few-step rows for students that have a few-step mode; the others skip them."""
    guidance_weight: float = Field(1.0, ge=0, description="Teacher's guidance, and the student's input, when scored.")
    guidance_low: float = Field(0.0, ge=0, le=1, description="Guided for t in [low, high].")
    guidance_high: float = Field(1.0, ge=0, le=1)
    seed: int = Field(1_000_003, ge=0, lt=2**63)
    """Seed of the evaluation noise, apart from the training seed."""
    use_ema: bool = Field(True, description="Score the averaged weights.")

    @property
    def pairs(self) -> int:
        """Samples that scores sample by sample see."""
        return min(self.num_samples, self.num_pairs or self.num_samples)

    @property
    def samples_a_row(self) -> str:
        """In words, for the legends of tables."""
        few = f" ({self.pairs} for scores sample by sample)" if self.pairs < self.num_samples else ""
        return f"{self.num_samples} samples a row{few}"


class RunConfig(Section):
    """One run. ``freeflow config show`` prints it resolved, every default written out."""

    name: str = Field("run", min_length=1, pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$", max_length=200)
    """Names the run folder."""
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of every training draw.")
    teacher: ComponentChoice | None = Field(None, description="Velocity oracle; none when training from data.")
    student: ComponentChoice = Field(description="Trainable network.")
    objective: ComponentChoice = Field(description="What is minimised.")
    source: ComponentChoice = Field(default_factory=lambda: ComponentChoice(name="prior"))
    """Training batches; prior: noise alone."""
    reference: ComponentChoice | None = Field(None, description="Held-out data that samples are compared with.")
    codec: ComponentChoice = Field(default_factory=lambda: ComponentChoice(name="pixels"))
    """Latents <-> images."""
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    runtime: RuntimeConfig = Field(default_factory=RuntimeConfig)
    logging: LoggingConfig = Field(default_factory=LoggingConfig)
    checkpointing: CheckpointingConfig = Field(default_factory=CheckpointingConfig)
    samples: SamplesConfig = Field(default_factory=SamplesConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    trackers: tuple[ComponentChoice, ...] = Field((), description="Where metrics go besides the run folder.")
    _preset: str | None = PrivateAttr(None)

    @property
    def preset(self) -> str | None:
        """Name of the preset that the settings were laid over. No setting: what is written out is complete without."""
        return self._preset

    def from_preset(self, name: str | None) -> RunConfig:
        """The same settings, known to begin with this preset."""
        config = self.model_copy()
        config._preset = name
        return config

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        if self.training.batch_size % self.training.accumulation:
            raise ValueError(
                f"training.batch_size={self.training.batch_size} must be a multiple of "
                f"training.accumulation={self.training.accumulation}"
            )
        if self.evaluation.guidance_low > self.evaluation.guidance_high:
            raise ValueError("evaluation.guidance_low must not exceed evaluation.guidance_high")
        return self


def row_title(row: str, evaluation: EvaluationConfig | None = None) -> str:
    """A row of scores as people name it; ``evaluation`` fills in the steps. Unknown rows keep their name."""
    many, jump = "many steps", "student jump, then teacher"
    if evaluation is not None:
        many = f"{evaluation.reference_steps} steps"
        jump = f"student jump to t={evaluation.jump_to:g}, then teacher, {_steps(evaluation.jump_steps)}"
    if match := re.fullmatch(r"(\w+?)_(\d+)_steps?", row):
        return f"{match[1].replace('_', ' ')}, {_steps(int(match[2]))}"
    titles = {"data": "training images (floor)", "teacher_floor": "teacher, other noise (floor)"}
    titles |= {"teacher": f"teacher, {many}", "student": "student, 1 step", "student_jump": jump}
    return titles.get(row, row.replace("_", " "))


def _steps(count: int) -> str:
    return f"{count} step" if count == 1 else f"{count} steps"
