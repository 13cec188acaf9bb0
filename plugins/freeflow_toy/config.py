"""Options of the toy teacher and student. No torch here."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from freeflow_core.config import ComponentConfig

Vector = tuple[float, ...]
Matrix = tuple[Vector, ...]


class GaussianMixtureConfig(ComponentConfig):
    """Exact velocity of a Gaussian mixture in any dimension, with classes; no weights, no training.

    The mixture is given by a named layout, or component by component (``layout: custom``).

    Source: Closed form: conditional expectations of jointly Gaussian variables
    """

    layout: Literal["ring", "grid", "single", "custom"] = "ring"
    """ring: num_modes on a circle; grid: num_modes on a square; single: one Gaussian at (radius, 0, ...); custom: means
    with stds or covariances. Coordinates beyond the second are centred at 0."""
    sample_shape: tuple[PositiveInt, ...] = Field((2,), min_length=1)
    """Dimensions of one state; means and covariances see it flattened."""
    num_modes: PositiveInt = Field(8, description="Components of ring (any number) and grid (a square number).")
    radius: float = Field(2.0, ge=0, description="Radius of the ring, half the side of the grid, place of the single.")
    std: PositiveFloat = Field(0.1, description="Standard deviation of every component of a named layout.")
    means: Matrix | None = Field(None, description="custom: one mean per component, each flattened.")
    stds: tuple[PositiveFloat, ...] | None = Field(None, description="custom: one isotropic deviation per component.")
    covariances: tuple[Matrix, ...] | None = None
    """custom: one matrix per component, full or its lower triangle as rows of length 1, 2, ..."""
    weights: tuple[PositiveFloat, ...] | None = None
    """Share of each component, normalised to sum to 1; null: equal."""
    labels: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Class of each component, 0, 1, ...; null: see num_classes."""
    num_classes: PositiveInt | None = None
    """Without labels: component i has class i mod num_classes; null: unconditional."""

    @property
    def dimension(self) -> int:
        return math.prod(self.sample_shape)

    @property
    def num_components(self) -> int:
        if self.layout == "custom":
            return len(self.means or ())
        return 1 if self.layout == "single" else self.num_modes

    @property
    def component_labels(self) -> tuple[int, ...] | None:
        if self.labels is None and self.num_classes is not None:
            return tuple(index % self.num_classes for index in range(self.num_components))
        return self.labels

    @field_validator("covariances")
    @classmethod
    def _complete_triangles(cls, value: tuple[Matrix, ...] | None) -> tuple[Matrix, ...] | None:
        return None if value is None else tuple(_symmetric(matrix, i) for i, matrix in enumerate(value))

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [name for name in ("means", "stds", "covariances") if getattr(self, name) is not None]
        if self.layout == "custom":
            if not self.means or (self.stds is None) == (self.covariances is None):
                raise ValueError(
                    "layout: custom needs means and exactly one of stds and covariances, got "
                    + (", ".join(given) or "none of them")
                )
        elif given:
            raise ValueError(f"{', '.join(given)} may only be given with layout: custom, not {self.layout}")
        elif self.layout != "single" and self.dimension < 2:
            raise ValueError(f"layout: {self.layout} needs at least 2 dimensions, sample_shape has {self.dimension}")
        elif self.layout == "grid" and math.isqrt(self.num_modes) ** 2 != self.num_modes:
            raise ValueError(f"layout: grid needs a square number of modes (4, 9, 16, ...), got {self.num_modes}")
        for name in ("stds", "covariances", "weights", "labels"):
            value = getattr(self, name)
            if value is not None and len(value) != self.num_components:
                raise ValueError(f"{name} has {len(value)} entries, expected one a component ({self.num_components})")
        for name in ("means", "covariances"):
            for index, entries in enumerate(getattr(self, name) or ()):
                if len(entries) != self.dimension:
                    raise ValueError(
                        f"{name}[{index}] has {len(entries)} entries, expected {self.dimension} "
                        f"(sample_shape {self.sample_shape})"
                    )
        if self.labels is not None and self.num_classes is not None:
            raise ValueError("labels and num_classes both say which class a component has; give one of them")
        if self.num_classes is not None and self.num_classes > self.num_components:
            raise ValueError(f"num_classes={self.num_classes} exceeds the {self.num_components} components")
        return self


class MixtureSourceConfig(GaussianMixtureConfig):
    """Endless exact samples of a Gaussian mixture, with its classes; use with codec: states."""

    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the samples; sample i depends on it and i alone.")
    held_out: int = Field(0, ge=0)
    """Further samples, never trained on, to compare with; drawn apart from the training stream."""


class StatesConfig(ComponentConfig):
    """Float states pass unchanged: for sources that yield states instead of images."""


class TrunkConfig(ComponentConfig):
    """Size and inputs of an MLP."""

    width: PositiveInt = Field(128, le=65_536, description="Units of each hidden layer.")
    depth: PositiveInt = Field(3, le=1000, description="Residual blocks of two layers.")
    num_frequencies: int = Field(3, ge=0, le=16)
    """Sine and cosine pairs of each time, at pi, 2 pi, ...; low ones keep d/ds smooth."""
    sample_shape: tuple[PositiveInt, ...] | None = Field(None, min_length=1)
    """Dimensions of one state; null: the teacher's."""
    num_classes: PositiveInt | None = Field(None, description="Classes; null: the teacher's, else the source's.")


class MLPStudentConfig(TrunkConfig):
    """Residual MLP that predicts the average velocity of small vector states.

    Source: Average velocity: Geng et al. 2025, arXiv 2505.13447
    """

    zero_init: bool = Field(False, description="Start with a zero output layer, so that u = 0 and X(x, t, s) = x.")


class MLPPolicyStudentConfig(TrunkConfig):
    """Residual MLP that emits a policy, a velocity field in closed form, for small vector states.

    Source: pi-Flow: Chen et al. 2025, arXiv 2510.14974
    """

    policy: Literal["dx", "gm"] = "gm"
    """gm: a Gaussian mixture of the data point; dx: the data point as a function of time."""
    num_components: PositiveInt | None = None
    """Components of gm, or points of dx; null: 32 and 10, as the paper."""
    initial_std: PositiveFloat = 0.5
    """gm: deviation of a component at the start, in units of velocity. The paper starts a trained teacher's head at
    0.05; a network that starts from nothing is better off with a wide one (this project's)."""
    shift: PositiveFloat = 1.0
    """Substeps, and the points of dx, are equal in tau, t = shift tau / (1 + (shift - 1) tau)."""
    num_substeps: PositiveInt = Field(128, description="Substeps of the policy's path per unit of tau; as the paper.")


def _symmetric(matrix: Matrix, index: int) -> Matrix:
    size = len(matrix)
    lengths = [len(row) for row in matrix]
    if lengths == list(range(1, size + 1)):
        matrix = tuple(tuple(matrix[max(i, j)][min(i, j)] for j in range(size)) for i in range(size))
    elif lengths != [size] * size:
        raise ValueError(
            f"covariances[{index}] has rows of {lengths} entries; expected {size} rows of {size}, or a lower "
            f"triangle with rows of 1 to {size}"
        )
    if matrix != tuple(zip(*matrix, strict=True)):
        raise ValueError(f"covariances[{index}] is not symmetric")
    return matrix
