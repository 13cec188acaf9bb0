"""Options of the evaluators."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from freeflow_core.config import ComponentConfig


class ClassifierOptions(ComponentConfig):
    """Which network names the class of an image; Inception has no classifier here."""

    features: Literal["digits", "mnist", "file"] = "digits"
    """digits, mnist: small packaged networks, for 8x8 digits and for MNIST; file: yours, features_file."""
    features_file: Path | None = None
    """With features: file, a network that `python -m freeflow_metrics.train_features` wrote."""

    @model_validator(mode="after")
    def _file_is_given(self) -> Self:
        if (self.features == "file") != (self.features_file is not None):
            raise ValueError(
                f"features is {self.features!r} and features_file is {self.features_file}; set both, features: file "
                "and features_file: PATH, or neither"
            )
        return self


class FeatureOptions(ClassifierOptions):
    """Which network turns images into features."""

    features: Literal["digits", "mnist", "file", "inception"] = Field(  # type: ignore[assignment]  # one more
        "digits",
        description="digits, mnist: small packaged networks for 8x8 digits and for MNIST; file: your own, "
        "features_file; inception: clean-fid's, for FID and KID.",
    )
    inception_path: Path | None = None
    """clean-fid's inception-2015-12-05.pt, or the folder that holds it; null: download it once. The file is
    TorchScript, which is run: name only a file you trust."""
    inception_resize: Literal["clean", "legacy-tensorflow"] = "clean"
    """Resizing to 299: clean-fid's, or the original one that ADM's statistics were made with."""

    @model_validator(mode="after")
    def _path_needs_inception(self) -> Self:
        if self.inception_path is not None and self.features != "inception":
            raise ValueError(f"inception_path is set but features is {self.features!r}; set features: inception")
        return self


class PerceptualConfig(FeatureOptions):
    """Distance of activations, unit vectors over channels: LPIPS without learned weights, on any feature network.

    Source: Zhang et al. 2018, arXiv 1801.03924
    """


class FrechetConfig(FeatureOptions):
    """Fréchet distance (FID with Inception features) to held-out data, the teacher, stored statistics.

    Source: Heusel et al. 2017, arXiv 1706.08500; clean-fid, Parmar et al. 2022, arXiv 2104.11222
    """

    reference_statistics: str | None = Field(None, min_length=1)
    """Also score against stored statistics: an .npz file with mu and sigma (ADM's or clean-fid's), mnist-test or
    mnist-train, packaged for features: mnist; or the name of clean-fid's own, such as cifar10, which are downloaded."""
    reference_split: str = Field("train", min_length=1, description="Split of clean-fid's own statistics.")
    reference_resolution: PositiveInt = Field(32, description="Image side of clean-fid's own statistics.")
    error_groups: int | None = Field(None, ge=2, le=100)
    """Groups of a row's samples that are left out in turn for the distance's standard error; null: 10 for features of
    at most 256 dimensions, above which the matrices take too long, none."""


class KernelConfig(FeatureOptions):
    """Kernel distance (KID with Inception features) to held-out data and the teacher.

    Source: Binkowski et al. 2018, arXiv 1801.01401; clean-fid, Parmar et al. 2022, arXiv 2104.11222
    """

    num_subsets: PositiveInt = Field(100, description="Subsets averaged over.")
    subset_size: int = Field(1_000, ge=2, description="Samples per subset; at most those there are.")
    max_samples: int = Field(50_000, ge=2, description="Features kept in memory per row, by sample order.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the subsets, the same for every row.")


class ClassAccuracyConfig(ClassifierOptions):
    """Share of samples a classifier takes for the class they were asked to be."""


class SpreadConfig(ComponentConfig):
    """Per-pixel standard deviation within classes, absolute and relative to the teacher: shows collapse."""

    max_side: PositiveInt = 64
    """Larger images are area-averaged to this side first: memory grows with classes x pixels."""


class FidelityConfig(ComponentConfig):
    """Error to the teacher's end points from the same noise, and the residual of the flow-map identity.

    Source: Tong et al. 2025, arXiv 2511.19428
    """

    derivative_samples: int = Field(256, ge=0, description="Samples for derivative_residual; 0 leaves it out.")
    durations: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field((0.25, 0.5, 0.75, 1.0), min_length=1)
    """Durations d in (0, 1] at which the identity is checked."""
    derivative: Literal["forward-mode", "central"] = "forward-mode"
    """How du/dd is computed: exactly, or by a central difference."""
    derivative_step: PositiveFloat = Field(5e-3, le=0.1, description="Step of the central difference.")


class EnergyDistanceConfig(ComponentConfig):
    """Energy distance between raw states to held-out data and the teacher: vectors and small images.

    Source: Székely & Rizzo 2013, J. Statistical Planning and Inference 143(8)
    """

    max_samples: int = Field(4_096, ge=2)
    """States kept in memory per row, the first by sample order; cost grows with its square."""
    max_dimension: PositiveInt = 4_096
    """Largest number of entries of a state; larger ones are refused, for raw distances say little."""


class ClassProbabilityConfig(ClassifierOptions):
    """Probability that a classifier gives the class asked for."""


class FeatureCentroidConfig(FeatureOptions):
    """Nearness to the mean features of the real images of the class."""


class DensityRatioConfig(FeatureOptions):
    """How much more often such features occur among real images of the class than among the student's samples.

    By logistic regression on the features and their squares. Ranked with --temperature 1 it resamples by importance.

    Source: Sugiyama et al. 2012, Density Ratio Estimation; Azadi et al. 2019, arXiv 1810.06758
    """

    num_samples: int = Field(4_000, ge=2, description="One-step samples of the student it is fitted on.")
    seed: int = Field(2_000_003, ge=0, lt=2**63, description="Of their noise, apart from that of the search.")
    guidance_weight: float = Field(1.0, ge=0, description="The student's input for them.")
    per_class: bool = Field(True, description="A regression for each class; false: one for all, for many classes.")
    penalty: PositiveFloat = Field(1e-2, description="Weight of the squared coefficients beside the mean loss.")


class CallableVerifierConfig(ComponentConfig):
    """A function of your own, as module:function."""

    function: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """module:function of (images, condition) that returns (N,) scores, higher is better. The module is imported, which
    runs it, and so needs --trust."""
