"""Options of the transformer's components. Never imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from freeflow_core.config import ComponentConfig
from freeflow_transformers.architecture import SIZES, Sign, SizeName, StoredOptions, TimeDirection
from freeflow_transformers.released.families import FamilyName, StudentFamilyName


class TransformerOptions(ComponentConfig):
    """The backbone. Every null means: as the teacher, when it is a transformer; else the default named."""

    size: SizeName | None = None
    """Named size: S 12x384x6, B 12x768x12, L 24x1024x16, XL 28x1152x16 (depth x width x heads)."""
    depth: PositiveInt | None = Field(None, le=1000, description="Blocks; null: as the teacher, else 4.")
    width: PositiveInt | None = Field(None, le=65_536)
    """Channels of a token, a multiple of 4 and of num_heads; null: as the teacher, else 128."""
    num_heads: PositiveInt | None = Field(None, description="Attention heads; null: as the teacher, else 4.")
    patch_size: PositiveInt | None = None
    """Divides both sides of a state; null: the teacher's, else the least from 2 up with at most 256 tokens."""
    mlp_ratio: PositiveFloat | None = None
    """Hidden units of a block's MLP over its width; null: as the teacher, else 4."""
    qk_norm: bool | None = Field(None, description="LayerNorm over queries and keys; null: as the teacher, else false.")
    sample_shape: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    """(C, H, W) of one state; null: the teacher's, else the source's images. Set it for latents."""
    initialise: Literal["teacher", "random"] = "teacher"
    """teacher: start from its weights when there is a teacher; random: a fresh network, of any size."""

    @model_validator(mode="after")
    def _check_size(self) -> TransformerOptions:
        _refuse_parts_of_size(self)
        return self


class FlowMapTransformerConfig(TransformerOptions):
    """One-step transformer with duration and guidance inputs; starts from a transformer teacher.

    Source: Tong et al. 2025, arXiv 2511.19428
    """

    guidance: bool | None = None
    """Take the guidance weight as an input; null: when there are classes to be guided by. Without it the student knows
    only the weight it was trained at."""


class VelocityTransformerConfig(TransformerOptions):
    """Plain velocity transformer, to pretrain a teacher from data.

    Source: Ma et al. 2024, arXiv 2401.08740
    """

    num_classes: int | None = Field(None, ge=0)
    """Classes; 0: unconditional, labels are ignored; null: the teacher's, else the source's."""


class PolicyOptions(StoredOptions):
    """The policy and its head (Chen et al. 2025, and its code); stored with the weights."""

    policy: Literal["dx", "gm"] = "gm"
    """gm: a Gaussian mixture of the data point; dx: the data point as a function of time."""
    num_components: PositiveInt | None = None
    """Components of gm (paper: 32; 8 for text-to-image), or points of dx (10); null: 32 and 10."""
    initial_std: PositiveFloat = Field(0.05, description="gm: deviation of a component at the start, as a velocity.")
    mean_noise: float = Field(0.05, ge=0, le=1, description="gm: by how much the components differ at the start.")
    std_width: PositiveInt = Field(1024, description="gm: hidden units of the layer that predicts the deviation.")
    shift: PositiveFloat = 1.0
    """Substeps, and the points of dx, are equal in tau, t = shift tau / (1 + (shift - 1) tau); text-to-image: 3.2."""
    num_substeps: PositiveInt = Field(128, description="Substeps of the policy's path per unit of tau.")

    @property
    def components(self) -> int:
        return self.num_components or (10 if self.policy == "dx" else 32)


class PolicyTransformerConfig(FlowMapTransformerConfig, PolicyOptions):
    """Transformer that emits a policy, a velocity field in closed form; starts from its teacher.

    Source: pi-Flow: Chen et al. 2025, arXiv 2510.14974
    """


class PublishedOptions(ComponentConfig):
    """Where the weights of a published network come from, and what a file does not tell."""

    checkpoint: Path | None = None
    """Weights (.safetensors, .pt or .pth, training checkpoints too); null: the published ones, fetched on first use."""
    weights: Literal["ema", "model"] | None = None
    """Which weights of a training checkpoint; null: ema where there is one, else model."""
    num_heads: PositiveInt | None = None
    """Attention heads, which a file does not tell unless its size is a named one."""


class ReleasedTeacherConfig(PublishedOptions):
    """What teachers with published weights share. Every null means: as the checkpoint; without one, as named."""

    family: ClassVar[FamilyName]

    initialise: Literal["checkpoint", "random"] = "checkpoint"
    """random: the family's architecture with random weights, to try a recipe or its cost without a checkpoint."""
    size: SizeName | None = Field(None, description="S, B, L or XL; checked against the checkpoint; null: XL.")
    depth: PositiveInt | None = Field(None, le=1000, description="Blocks, for a size of one's own; checked likewise.")
    width: PositiveInt | None = Field(None, le=65_536, description="Channels of a token, likewise.")
    patch_size: Literal[2, 4, 8] | None = Field(None, description="Side of a patch; checked likewise; null: 2.")
    resolution: Literal[256, 512] | None = None
    """Pixels of the decoded images, 8 to a latent; checked likewise; null: 256."""
    num_classes: PositiveInt | None = Field(None, description="Classes, without the null class; likewise; null: 1000.")
    guidance_channels: PositiveInt | Literal["all"] | None = None
    """Channels that guidance applies to, from the first; the others stay conditional. null: as the family's sampler."""

    @property
    def convention(self) -> dict[str, str]:
        """What was asked for of the time's direction and the sign."""
        return {}

    @model_validator(mode="after")
    def _check_choices(self) -> ReleasedTeacherConfig:
        _refuse_parts_of_size(self)
        if self.initialise == "random" and self.checkpoint is not None:
            raise ValueError("initialise=random uses no checkpoint; leave one of the two out")
        if (self.depth is None) != (self.width is None):
            raise ValueError("a size of one's own needs both depth and width")
        return self


class SiTTeacherConfig(ReleasedTeacherConfig):
    """Flow transformer (SiT): published weights, or trained with `freeflow pretrain`.

    Source: Ma et al. 2024, arXiv 2401.08740
    """

    family: ClassVar[FamilyName] = "sit"

    time_direction: TimeDirection | None = None
    """Where its own time has data; null: as `pretrain` stored it, else data-at-1 for sit, data-at-0 for sit-repa."""
    sign: Sign | None = None
    """Direction of its velocity; null: as `pretrain` stored it, else data-minus-noise for sit, noise-minus-data for
    sit-repa."""

    @property
    def convention(self) -> dict[str, str]:
        given = {"time_direction": self.time_direction, "sign": self.sign}
        return {name: value for name, value in given.items() if value is not None}


class SiTRepaTeacherConfig(SiTTeacherConfig):
    """SiT trained with representation alignment (REPA): published weights, XL/2 at 256 pixels or 512.

    Source: Yu et al. 2025, arXiv 2410.06940
    """

    family: ClassVar[FamilyName] = "sit-repa"


class DiTTeacherConfig(ReleasedTeacherConfig):
    """Noise-predicting diffusion transformer (DiT) as a velocity: published weights, XL/2, 256 or 512.

    Source: Peebles & Xie 2022, arXiv 2212.09748
    """

    family: ClassVar[FamilyName] = "dit"

    diffusion_steps: int = Field(1000, ge=2, description="Steps of the schedule; the network is fed 0 to one less.")
    beta_start: float = Field(1e-4, gt=0, lt=1, description="Variance added by the first step; linear in between.")
    beta_end: float = Field(0.02, gt=0, lt=1, description="Variance added by the last step.")


class ReleasedStudentConfig(PublishedOptions):
    """Options of students in the published FreeFlow format. Every null means: as the file tells, else as named."""

    published: ClassVar[str | None] = None
    resolution: ClassVar[int] = 256
    family_default: ClassVar[StudentFamilyName | None] = None

    family: StudentFamilyName | None = None
    """Whose convention the student has, its teacher's: sit or sit-repa; null: as the file tells, else this component's
    default. A file with 2C output channels is sit's."""


class FreeFlowStudentConfig(ReleasedStudentConfig):
    """One-step student from a file in the published FreeFlow format.

    Source: Tong et al. 2025, arXiv 2511.19428
    """

    checkpoint: Path
    """Weights (.safetensors, .pt or .pth, a training checkpoint included). The published ones are students of their
    own: freeflow-xl-2-256, freeflow-sit-xl-2-256 and freeflow-xl-2-512."""


class FreeFlow256Config(ReleasedStudentConfig):
    """The published one-step student of sit-repa, XL/2 at 256 pixels.

    Source: Tong et al. 2025, arXiv 2511.19428
    """

    published: ClassVar[str | None] = "freeflow-xl-2-256"
    family_default: ClassVar[StudentFamilyName | None] = "sit-repa"


class FreeFlowSiT256Config(ReleasedStudentConfig):
    """The published one-step student of sit, XL/2 at 256 pixels.

    Source: Tong et al. 2025, arXiv 2511.19428
    """

    published: ClassVar[str | None] = "freeflow-sit-xl-2-256"
    family_default: ClassVar[StudentFamilyName | None] = "sit"


class FreeFlow512Config(ReleasedStudentConfig):
    """The published one-step student, XL/2 at 512 pixels.

    Source: Tong et al. 2025, arXiv 2511.19428
    """

    published: ClassVar[str | None] = "freeflow-xl-2-512"
    resolution: ClassVar[int] = 512
    family_default: ClassVar[StudentFamilyName | None] = "sit"


class ShippedTeacherConfig(ComponentConfig):
    """What teachers inside this package share."""

    asset: ClassVar[str]
    codec: ClassVar[str | None] = None
    pretrained_by: ClassVar[str]

    checkpoint: Path | None = None
    """Other weights to use, written by `freeflow pretrain`; null: the shipped ones."""


class DigitsTeacherConfig(ShippedTeacherConfig):
    """Handwritten digits, 8x8, ten classes: a small transformer that ships with the package.

    Source: Ma et al. 2024, arXiv 2401.08740; data: UCI optical digits
    """

    asset: ClassVar[str] = "assets/digits.safetensors"
    pretrained_by: ClassVar[str] = "digits"


class MNISTTeacherConfig(ShippedTeacherConfig):
    """Handwritten digits, 28x28, ten classes: a small latent transformer that ships with the package.

    It works on latents of the codec ``small-vae``.

    Source: Ma et al. 2024, arXiv 2401.08740; data: MNIST
    """

    asset: ClassVar[str] = "assets/mnist.safetensors"
    codec: ClassVar[str | None] = "small-vae"
    pretrained_by: ClassVar[str] = "mnist-latent"


def _refuse_parts_of_size(options: TransformerOptions | ReleasedTeacherConfig) -> None:
    given = [name for name in ("depth", "width", "num_heads") if getattr(options, name) is not None]
    if options.size is not None and given:
        raise ValueError(
            f"size={options.size} already sets depth, width and num_heads ({SIZES[options.size]}); give either size or "
            f"{', '.join(given)}"
        )
