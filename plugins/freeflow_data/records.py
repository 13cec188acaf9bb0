"""Images by row number: in memory, mapped, or decoded from files when they are asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from freeflow_data.ordering import Rows


class Records(ABC):
    """M images of one shape, read by row number; may be read from several threads at once."""

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""

    @property
    @abstractmethod
    def labels(self) -> Tensor | None:
        """int64 (M,) classes, or None for unlabelled images."""

    @abstractmethod
    def __len__(self) -> int:
        """M."""

    @abstractmethod
    def images_at(self, rows: Rows) -> Tensor:
        """uint8 (N, C, H, W), a copy. Raises ``ConfigError`` naming what cannot be read."""

    @abstractmethod
    def take(self, rows: Rows) -> Records:
        """The chosen rows, in their order, as records of their own."""
