"""Options. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from freeflow_core.config import ComponentConfig

DType = Literal["float32", "float64", "bf16", "float16"]
ScheduleName = Literal["linear", "cosine", "vp", "ddpm", "ddpm-scaled-linear", "ve"]
Argument = Literal["x", "t", "condition"]


class ConventionOptions(ComponentConfig):
    """How a network is asked, and what its answer means. `freeflow teacher check` says whether they fit."""

    prediction: Literal["data", "noise", "velocity", "v-prediction", "score"] = "velocity"
    """What it estimates of x_own = alpha x + sigma n: x, n, the path's derivative, alpha n - sigma x, or grad log p."""
    time_direction: Literal["data-at-0", "data-at-1"] = Field("data-at-0", description="Where its own time has data.")
    sign: Literal["noise-minus-data", "data-minus-noise"] | None = None
    """Where a velocity or v-prediction points; null: as the network's time runs, so noise-minus-data with data-at-0."""
    schedule: ScheduleName = Field("linear", description="The path of the network's own states.")
    num_steps: int = Field(1000, ge=2, description="ddpm schedules: steps, and the default time_scale.")
    schedule_start: PositiveFloat | None = None
    """First beta (ddpm), beta_min (vp) or sigma_min (ve); null: 1e-4, 0.00085, 0.1, 0.002."""
    schedule_end: PositiveFloat | None = None
    """Last beta (ddpm), beta_max (vp) or sigma_max (ve); null: 0.02, 0.012, 20, 80."""
    time_scale: PositiveFloat | None = None
    """The network is fed time_scale x time + time_offset; null: 1, and num_steps with ddpm."""
    time_offset: float = Field(0.0, description="Added to the time fed.")
    time_type: Literal["float", "int"] = Field("float", description="int: rounded, for tables of step embeddings.")
    output_scale: float = Field(1.0, description="The answer is multiplied by this first.")
    data_std: PositiveFloat | None = None
    """Feed states divided by sqrt(alpha^2 data_std^2 + sigma^2), of unit variance; null: as they are."""
    time_low: float | None = Field(None, ge=0, lt=1)
    """Linear time below which the field is held; null: as the prediction needs."""
    time_high: float | None = Field(None, gt=0, le=1)
    """Linear time above which the field is held; null: as the prediction needs."""

    @model_validator(mode="after")
    def _check_convention(self) -> ConventionOptions:
        discrete = self.schedule.startswith("ddpm")
        if self.sign is not None and self.prediction not in ("velocity", "v-prediction"):
            raise ValueError(f"sign is for velocities; a prediction of the {self.prediction} takes output_scale=-1")
        if self.prediction == "velocity" and discrete:
            raise ValueError("discrete steps have no velocity; Stable Diffusion's is prediction=v-prediction")
        if self.schedule == "ve" and self.time_direction != "data-at-0":
            raise ValueError("schedule=ve feeds the network sigma, which is 0 at data; leave time_direction out")
        if self.output_scale == 0:
            raise ValueError("output_scale must not be 0")
        start, end = self.schedule_start, self.schedule_end
        if start is not None and end is not None and start >= end:
            raise ValueError(f"schedule_start={start:g} must be less than schedule_end={end:g}")
        if discrete and max(start or 0, end or 0) >= 1:
            raise ValueError("betas lie below 1")
        low, high = self.time_low or 0.0, 1.0 if self.time_high is None else self.time_high
        if low >= high:
            raise ValueError(f"time_low={low:g} must be less than time_high={high:g}")
        if self.prediction == "data" and self.time_low == 0:
            raise ValueError("data at t = 0 says nothing of the noise; time_low must be above 0")
        if self.prediction in ("noise", "score") and self.time_high == 1:
            raise ValueError(f"the {self.prediction} at t = 1 says nothing of the data; time_high must be below 1")
        return self


class OwnNetworkOptions(ConventionOptions):
    """What the teachers ``callable`` and ``torch-file`` share: how the network is called."""

    sample_shape: tuple[PositiveInt, ...] = Field(min_length=1, description="Dimensions of one state, without N.")
    arguments: tuple[Argument, ...] = ("x", "t", "condition")
    """Positional arguments in order; condition is left out where there is none."""
    keywords: dict[str, Any] = Field(default_factory=dict, description="Further arguments, the same in every call.")
    condition: Literal["none", "labels", "embeddings"] = "none"
    """What the network is conditioned on besides the time."""
    condition_argument: str | None = Field(None, description="Pass the condition as this keyword; null: by position.")
    num_classes: PositiveInt | None = Field(None, description="condition=labels: classes, without the null class.")
    null_label: int | None = Field(None, ge=0)
    """condition=labels: the unconditional label; null: the network cannot be guided."""
    embeddings: Path | None = None
    """condition=embeddings: .safetensors or .npz with tensors NAME (K, ...), a row a condition, and negative_NAME (1,
    ...) where the network can be guided. Each row counts as a class."""
    extra_channels: Literal["refuse", "drop"] = "refuse"
    """drop: keep the first channels of an answer with more than the state, such as variances."""
    dtype: DType | None = Field(None, description="The network's; null: as it comes, and 32 bits follow the run.")

    @model_validator(mode="after")
    def _check_call(self) -> OwnNetworkOptions:
        if sorted(set(self.arguments)) != sorted(self.arguments) or not {"x", "t"} <= set(self.arguments):
            raise ValueError("arguments must name x and t once each, and condition at most once")
        if (self.condition == "labels") != (self.num_classes is not None):
            raise ValueError("condition=labels and num_classes go together")
        if self.null_label is not None and self.condition != "labels":
            raise ValueError("null_label goes with condition=labels")
        if (self.condition == "embeddings") != (self.embeddings is not None):
            raise ValueError("condition=embeddings and the file embeddings go together")
        if self.condition_argument is not None and self.condition == "none":
            raise ValueError("condition_argument goes with a condition")
        return self


class CallableTeacherConfig(OwnNetworkOptions):
    """Any importable function or module, with its convention as options; needs --trust."""

    network: str = Field(pattern=r"^([A-Za-z_][\w.]*|.*\.py):[A-Za-z_][\w.]*$")
    """module:name or file.py:name of a function (x, t, condition), a torch module, or a class or factory of one."""
    options: dict[str, Any] | None = None
    """Arguments that make the network; null: a class is called without any."""
    weights: Path | None = None
    """State dict for a torch module: .safetensors, or .pt and .pth read without running code."""
    weights_key: str | None = None
    """Where a training checkpoint holds the state dict, such as `ema` or `state.model`; null: the file is one. A prefix
    that all names share, such as `module.`, is left out where the network's have none."""

    @model_validator(mode="after")
    def _check_weights(self) -> CallableTeacherConfig:
        if self.weights_key is not None and (self.weights is None or self.weights.suffix == ".safetensors"):
            raise ValueError("weights_key goes with weights that are a .pt or .pth file")
        return self


class TorchFileTeacherConfig(OwnNetworkOptions):
    """A torch.export (.pt2) or TorchScript file, with its convention as options; needs --trust."""

    file: Path = Field(description="A program saved by torch.export.save (.pt2) or torch.jit.save (.pt, .pth, .ts).")


class DiffusersTeacherConfig(ComponentConfig):
    """A flow-matching transformer of diffusers (SD3, FLUX) with prompts from a file.

    Nothing in its folder is executed, and nothing is fetched.

    Source: Esser et al. 2024, arXiv 2403.03206
    """

    folder: Path
    """Local folder of a pipeline or of a transformer: config.json beside .safetensors files."""
    subfolder: str | None = None
    """Part of `folder` that holds the transformer; null: `transformer` where there is one."""
    prompts: Path | None = None
    """Text file, a prompt a line: encoded once by the pipeline's own text encoders into the cache."""
    negative_prompt: str | None = Field("", description="Prompt of the null condition; null: there is none.")
    prompt_length: PositiveInt | None = Field(None, description="Tokens of T5; null: as the pipeline does it.")
    embeddings: Path | None = None
    """Instead: .safetensors or .npz with prompt_embeds (K, L, D) and pooled_prompt_embeds (K, P), and, for guidance,
    negative_prompt_embeds (1, L, D) and negative_pooled_prompt_embeds (1, P)."""
    latent_size: tuple[PositiveInt, PositiveInt] | None = None
    """Height and width of the latents; null: as config.json says, else 128 x 128."""
    guidance_embedding: float | None = Field(3.5, ge=0)
    """What a guidance-distilled FLUX is fed as its guidance; null: the run's own weight, and 1 unguided."""
    dtype: DType | None = Field(None, description="The network's; null: as stored, and 32 bits follow the run.")

    @model_validator(mode="after")
    def _check_prompts(self) -> DiffusersTeacherConfig:
        if (self.prompts is None) == (self.embeddings is None):
            raise ValueError("give either prompts, a text file, or embeddings, a file of tensors")
        return self


class WrappedStudentConfig(ComponentConfig):
    """The teacher's own network, which also takes the length of a jump and the guidance weight.

    Both enter by an embedding that starts at zero, so that the student starts as its teacher. With lora_rank the
    teacher's weights stay frozen and low-rank adapters are trained, at a fraction of the memory.

    Source: Geng et al. 2025, arXiv 2505.13447 (the jump as an input); Hu et al. 2021, arXiv 2106.09685 (LoRA)
    """

    time_embedding: str | None = None
    """Path of the module whose output the embedding is added to, such as `time_embed`; null: found by following the
    time through the network."""
    add_to: tuple[str, ...] = ()
    """Paths of several modules, in a network without a time embedding; empty: as time_embedding says."""
    width: PositiveInt = Field(128, description="Hidden units of the embedding.")
    num_frequencies: PositiveInt = Field(4, description="Frequencies pi, 2 pi, ... of the embedded numbers.")
    lora_rank: PositiveInt | None = Field(None, description="Rank of adapters; null: all weights are trained.")
    lora_alpha: PositiveFloat | None = Field(None, description="Adapters count lora_alpha / lora_rank; null: 1.")
    lora_modules: str | None = None
    """Regular expression that the paths of adapted layers match; null: all linear and convolutional layers."""

    @model_validator(mode="after")
    def _check_wrapping(self) -> WrappedStudentConfig:
        if self.time_embedding is not None and self.add_to:
            raise ValueError("time_embedding and add_to exclude each other; name all modules in add_to")
        if self.lora_rank is None and (self.lora_alpha is not None or self.lora_modules is not None):
            raise ValueError("lora_alpha and lora_modules go with lora_rank")
        return self
