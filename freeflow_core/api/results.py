"""What Python calls give back: a run with its table and picture, a student that samples, images to look at."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from freeflow_core.api.wording import speaks_python
from freeflow_core.config import ComponentChoice, RunConfig
from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.evaluation.pictures import grid_image
from freeflow_core.evaluation.report import score_cells
from freeflow_core.evaluation.student_file import StudentFile, load_student
from freeflow_core.interfaces import Codec, Student
from freeflow_core.plugin import Manager, Registry
from freeflow_core.tools.export import export_student, push, save_pretrained
from freeflow_core.tools.sample_files.files import class_labels
from freeflow_core.tools.sample_files.sample import PreparedSamples, SampleRequest, check_numbers
from freeflow_core.types import Scores


@final
@dataclass(frozen=True)
class RunResult:
    """What a run left behind. In a notebook it shows its table and the student beside its teacher.

    Args:
        folder: of the run.
        status: ``"finished"`` or, where the run was told to stop early, ``"stopped"``.
        scores: rows of the table, each with its scores by name.
        files: what was written, by name.
        load_report: what the student took from the teacher, in words.
        config: what was run.
        manager: the plugins it was run with.
    """

    folder: Path
    status: str
    scores: Scores = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    load_report: str | None = None
    duration_seconds: float = 0.0
    peak_memory_bytes: int = 0
    config: RunConfig | None = field(default=None, repr=False)
    manager: Manager | None = field(default=None, repr=False)

    @cached_property
    def student(self) -> TrainedStudent:
        """The trained network, ready to sample. Raises ``CheckpointError``: the run has written none."""
        if "student" not in self.files:
            raise CheckpointError(f"The run in {self.folder} has written no student: it is {self.status}.")
        return TrainedStudent.load(self.files["student"], self.manager or Manager.load())

    def _repr_html_(self) -> str:
        seconds = f", {self.duration_seconds:.0f} s" if self.duration_seconds else ""
        parts = [f"<p><code>{html.escape(str(self.folder))}</code>: {html.escape(self.status)}{seconds}</p>"]
        if self.scores:
            parts.append(_html_table(*score_cells(self.scores, self.config.evaluation if self.config else None)))
        if picture := self._repr_png_():
            encoded = base64.b64encode(picture).decode()
            parts.append(f'<img alt="the student beside its teacher" src="data:image/png;base64,{encoded}">')
        return "\n".join(parts)

    def _repr_png_(self) -> bytes | None:
        path = self.files.get("comparison")
        return path.read_bytes() if path is not None and path.is_file() else None


@final
class TrainedStudent:
    """A trained student with what it takes to make images of its samples.

    Attributes:
        student: the network; :meth:`freeflow_core.interfaces.Student.flow_map` is what it computes.
        teacher: what it was distilled from, or None.
        codec: what turns its states into images.
        metadata: what its file says.
        guidance: the weight it was scored with after training; 1, none, where its file does not say.
    """

    def __init__(self, file: StudentFile, registry: Registry) -> None:
        self._file, self._registry = file, registry
        self.student: Student = file.student
        self.teacher: ComponentChoice | None = file.teacher
        self.codec: ComponentChoice = file.codec
        self.metadata: dict[str, Any] = file.metadata
        self.guidance = file.guidance
        self._codecs: dict[torch.device, Codec] = {}  # the last one, with its weights, for the next samples

    @classmethod
    def load(cls, name: str | Path, manager: Manager, options: Mapping[str, Any] | None = None) -> Self:
        """Arguments and errors of :func:`freeflow_core.api.load_student`."""
        registry = Registry(manager)
        return cls(load_student(name, registry, options), registry)

    @property
    def device(self) -> torch.device:
        return next(self.student.parameters()).device

    def to(self, device: str | torch.device) -> Self:
        """Move the network, and with it the sampling."""
        self.student.to(device)
        return self

    @speaks_python
    def sample(
        self,
        num: int = 16,
        *,
        labels: int | Iterable[int] | Literal["balanced", "random"] = "balanced",
        guidance: float | None = None,
        seed: int = 0,
        steps: int = 1,
        batch_size: int = 250,
    ) -> Images:
        """Samples 0 ... ``num`` - 1 of ``seed``: sample i is the same whatever ``num`` and ``batch_size``.

        Args:
            labels: one class, classes that are cycled, ``"balanced"`` (all in turn) or ``"random"``.
            guidance: the guidance weight, an input of the network; None for :attr:`guidance`.
            steps: above 1 for students that have a few-step mode.

        Raises:
            ConfigError: numbers or classes that do not fit; several steps of a student without such a mode.
        """
        check_numbers(num, batch_size, seed, steps, guidance)
        if not isinstance(labels, str):
            labels = (labels,) if isinstance(labels, int) else tuple(int(label) for label in labels)
        request = SampleRequest(
            num=num,
            student=self._file,
            teacher=None,
            sampler="one-step" if steps == 1 else "few-step",
            steps=steps,
            guidance_weight=self.guidance if guidance is None else guidance,
            guidance_interval=(0.0, 1.0),
            jump_to=0.5,
            labels=labels,
            seed=seed,
            precision="float32",
            assignments=(),
        )
        generator = PreparedSamples(request, self._registry, self.device, self._codecs.get(self.device)).generator
        self._codecs = {self.device: generator.codec}
        batches = list(generator.batches(0, num, batch_size))
        classes = class_labels([batch.condition for batch in batches])
        return Images(
            torch.cat([batch.images.cpu() for batch in batches]), None if classes is None else torch.from_numpy(classes)
        )

    @speaks_python
    def export(self, path: str | Path, *, format: str | None = None) -> str:
        """Write it as :func:`freeflow_core.api.export` does; what was written, in words."""
        return export_student(self._file, self._registry, Path(path), format)

    @speaks_python
    def save_pretrained(self, folder: str | Path, *, licence: str | None = None, diffusers: bool = False) -> list[str]:
        """Write what a repository of the Hugging Face hub holds, model card included; names of the files.

        Args:
            folder: new or empty.
            licence: of the weights, for the card; None: the teacher's, where it is known.
            diffusers: add a pipeline that ``DiffusionPipeline.from_pretrained`` loads.

        Raises:
            ConfigError: other files there; a student that diffusers cannot load.
            CheckpointError: it cannot be written.
        """
        return save_pretrained(self._file, self._registry, Path(folder), licence=licence, diffusers=diffusers)

    @speaks_python
    def push_to_hub(
        self, repository: str, *, private: bool = False, licence: str | None = None, diffusers: bool = False
    ) -> str:
        """Upload what :meth:`save_pretrained` writes to ``"owner/name"``, made when it is missing; its address.

        Raises as :meth:`save_pretrained`; ``ConfigError`` without a token; ``DownloadError`` where the hub refuses or
        cannot be reached.
        """
        return push(self._file, self._registry, repository, private=private, licence=licence, diffusers=diffusers)

    def __repr__(self) -> str:
        size = sum(parameter.numel() for parameter in self.student.parameters())
        teacher = f", teacher {self.teacher.name!r}" if self.teacher else ""
        return f"TrainedStudent({self.metadata.get('component')!r}, {size:,} parameters{teacher}, on {self.device})"


@final
@dataclass(frozen=True, eq=False)
class Images(Sequence[Image.Image]):
    """Samples. In a notebook they show themselves; ``numpy.asarray`` gives uint8 (N, H, W, C).

    Args:
        tensor: uint8 (N, C, H, W) with 1 or 3 channels, or states (N, *D) where a codec makes no images.
        labels: int64 (N,) classes, or None.
    """

    tensor: Tensor = field(repr=False)
    labels: Tensor | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, index: Any) -> Any:
        """One picture, or the images of a slice."""
        if isinstance(index, slice):
            return Images(self.tensor[index], None if self.labels is None else self.labels[index])
        self._check_pictures()
        array = self.tensor[index].permute(1, 2, 0).numpy()
        return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        tensor = self.tensor.movedim(1, -1) if self.tensor.ndim == 4 else self.tensor
        return np.array(tensor.numpy(), dtype=dtype)

    def grid(self, columns: int | None = None) -> Image.Image:
        """All in one picture; None: about twice as wide as high."""
        self._check_pictures()
        columns = columns or min(len(self), max(1, round((2 * len(self)) ** 0.5)))
        return Image.fromarray(grid_image(self.tensor, columns).permute(1, 2, 0).numpy())

    def save(self, path: str | Path) -> None:
        """The grid, in the format of the suffix."""
        self.grid().save(path)

    def _check_pictures(self) -> None:
        if self.tensor.ndim != 4:
            raise ConfigError(f"These samples are states {tuple(self.tensor.shape)}, not pictures; take .tensor.")

    def _repr_png_(self) -> bytes | None:
        if self.tensor.ndim != 4:
            return None
        stream = io.BytesIO()
        self.grid().save(stream, "png")
        return stream.getvalue()


def _html_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(tag: str, cells: Iterable[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "\n".join(["<table>", line("th", titles), *(line("td", row) for row in rows), "</table>"])
