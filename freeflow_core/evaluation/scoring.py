"""Pictures, scores and the report of a run. All its processes sample; the main one writes."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from freeflow_core.config import ComponentChoice, RunConfig
from freeflow_core.config.run import row_title
from freeflow_core.engine.build import Builder, Components
from freeflow_core.engine.events import Events
from freeflow_core.engine.run_folder import RunFolder
from freeflow_core.errors import ConfigError, FreeflowError
from freeflow_core.evaluation.pictures import comparison_image, grid_image, save_image, scatter_image
from freeflow_core.evaluation.report import write_report
from freeflow_core.evaluation.sampling import Generator, make_generator
from freeflow_core.evaluation.scores import STUDENT, TEACHER, TEACHER_1, Evaluation, SharedRows, metric_name
from freeflow_core.evaluation.single_step import SingleSteps
from freeflow_core.evaluation.student_file import save_student
from freeflow_core.files import write_text
from freeflow_core.interfaces import AverageVelocityStudent, EvaluationContext, Student, Teacher
from freeflow_core.plugin.culprit import described, place
from freeflow_core.types import Condition, Progress, Scores

_log = logging.getLogger("freeflow")


@final
class Scoring:
    """Looks at the (averaged) student of a run.

    A run without a teacher is one that trains a teacher: there the network itself is integrated and scored.

    Attributes:
        no_images: why there are no pictures and scores, or None.
    """

    def __init__(
        self,
        config: RunConfig,
        builder: Builder,
        components: Components,
        student: Student,
        folder: RunFolder,
        events: Events,
        shared: SharedRows | None = None,
    ) -> None:
        self.config = config
        self.folder = folder
        self._builder, self._crew = builder, builder.crew
        self._events = events
        self._shared = shared
        self._network = student
        self._teacher = components.teacher
        self._student: Student | None = student
        if self._teacher is None and isinstance(student, AverageVelocityStudent):
            self._teacher, self._student = VelocityOfStudent(student), None
        self._context = EvaluationContext(
            builder.device, components.codec, self._teacher, self._student, components.reference or components.source
        )
        self._evaluation: Evaluation | None = None
        random = components.teacher is not None and not components.load_report.taken
        self._single_steps = SingleSteps(config, builder, self._context, starts_random=random)
        self.no_images: str | None = None

    def prepare(self) -> None:
        """Build the evaluators and try them now, so that what is missing or unfit shows before training, not after."""
        if self.config.evaluation.enabled:
            evaluation = self._open_evaluation()
            if self.can_show():
                with evaluation_mode(self._network):
                    evaluation.check()

    def can_show(self) -> bool:
        """Whether there is a codec to make images with. Without one training goes on; why is told once, as a warning.

        Asked again each time: weights that could not be fetched an hour ago may be there now.
        """
        try:
            self._context.codec.prepare()
        except FreeflowError as error:
            if str(error) != self.no_images:
                _log.warning("No pictures and no scores for now: %s Training is not affected.", error)
            self.no_images = str(error)
            return False
        self.no_images = None
        return True

    def picture(self, images_seen: int) -> None:
        """A grid of samples, classes in columns; a scatter plot for states that are not images."""
        index, columns, _ = self._shown()
        with evaluation_mode(self._network):
            x, images = self._generator().drawn(index, columns)
        image = grid_image(images, columns) if _is_image(x) else _scatter([("samples", x)])
        if image is not None:
            self._save_image(image, "samples", self.folder.samples / f"images-{images_seen:012d}.png", images_seen)

    def score(self, progress: Progress, *, everything: bool) -> Scores:
        """Score all rows, or the student's one step alone; keep the scores, and tell observers and trackers."""
        evaluation = self._open_evaluation()
        with evaluation_mode(self._network):
            if everything:
                rows = evaluation.all_rows()
            else:
                rows = {STUDENT: evaluation.student_row()} if self._student is not None else {}
        if everything:
            self._crew.from_main(lambda: write_text(self.folder.scores_file, json.dumps(rows, indent=1)))
        flat = {metric_name(row, name): value for row, scores in rows.items() for name, value in scores.items()}
        self._events.evaluated(progress, flat)
        return rows

    @property
    def first_look(self) -> int | None:
        return self._single_steps.first_look

    def look(self, progress: Progress) -> None:
        """A look that fails is told, and costs no run."""
        if self.first_look is None:
            return
        try:
            with evaluation_mode(self._network):
                found = self._single_steps.look(progress.images)
        except Exception as error:
            where = place(error)
            _log.warning(
                "The student's single step could not be compared with the teacher's own: %s. Training goes on; "
                "evaluation.single_step=false leaves this out.",
                f"{described(error)}{f' ({where})' if where else ''}",
            )
            return
        values = {STUDENT: found.student, TEACHER_1: found.teacher}
        flat = {metric_name(row, "single_step_distance"): value for row, value in values.items()}
        self._events.evaluated(progress, flat)

    def compare(self, images_seen: int) -> bool:
        """The comparison picture: rows from the same noise, classes in columns. False when there is nothing to show."""
        if self._teacher is None:
            return False
        with evaluation_mode(self._network):
            return self._compare(images_seen)

    def _compare(self, images_seen: int) -> bool:
        reference = self._open_evaluation().reference()
        index, columns, classes = self._shown()
        index = index[index < len(reference.x)]
        other = STUDENT if self._student is not None else TEACHER_1
        titles = [row_title(TEACHER, self.config.evaluation), row_title(other, self.config.evaluation)]
        image: Tensor | None
        if _is_image(reference.x):
            shown = self._generator(one_step=True).drawn(index, columns)[1].cpu()
            rows = []
            for block in torch.split(torch.arange(len(index)), columns):
                rows.append((titles[0], reference.images[index[block]].cpu()))
                rows.append((titles[1], shown[block]))
            image = comparison_image(rows, [str(i) if classes else "" for i in range(columns)])
        else:
            index = torch.arange(len(reference.x))
            x, _ = self._generator(one_step=True).drawn(index, self.config.evaluation.batch_size)
            image = _scatter([(titles[0], reference.x), (titles[1], x)])
        if image is None:
            return False
        self._save_image(image, "comparison", self.folder.comparison_file, images_seen)
        return True

    def _save_image(self, image: Tensor, name: str, path: Path, images_seen: int) -> None:
        self._crew.from_main(lambda: save_image(image, path))
        self._events.pictured(name, path, images_seen)

    def save_student(self, images_seen: int) -> None:
        """The final network in one file."""
        self._crew.from_main(lambda: save_student(self.folder.student_file, self.config, self._network, images_seen))

    def report(self, command: str, scores: Scores, facts: Mapping[str, str], load_report: str | None) -> None:
        """``report.md``."""
        links: dict[str, str] = {}
        if self.folder.comparison_file.is_file():
            links["Rows from the same noise"] = self.folder.comparison_file.name
        if grids := self._grids():
            links["Samples"] = f"{self.folder.samples.name}/{grids[-1].name}"
        looks = [f"{look}." for look in self._single_steps.looks]
        if looks and self._single_steps.looks[-1].is_worse:
            looks.append(self._single_steps.causes())
        text = write_report(
            self.config,
            command,
            scores,
            load_report=load_report,
            facts=facts,
            pictures=links,
            looks=looks,
            columns=self._column_names(),
        )
        self._crew.from_main(lambda: write_text(self.folder.report_file, text))

    def files(self) -> dict[str, Path]:
        """What is there to look at, by name; tells the trackers to keep it, and the grid that the report shows."""
        folder = self.folder
        candidates = {
            "report": folder.report_file,
            "comparison": folder.comparison_file,
            "student": folder.student_file,
            "scores": folder.scores_file,
            "config": folder.config_file,
            "metrics": folder.journal.metrics_file,
        }
        found = {name: path for name, path in candidates.items() if path.is_file()}
        for path in (*found.values(), *self._grids()[-1:]):
            self._events.filed(path)
        return found

    def _grids(self) -> list[Path]:
        return sorted(self.folder.samples.glob("*.png"))

    def _open_evaluation(self) -> Evaluation:
        if self._evaluation is None:
            self._evaluation = Evaluation(
                self.config, self._builder, self._context, on_advance=self._events.advanced, shared=self._shared
            )
        return self._evaluation

    def _generator(self, one_step: bool = False) -> Generator:
        """The student's one step; for a trained velocity its many steps, or one when asked."""
        evaluation = self.config.evaluation
        if self._student is not None:
            sampler, steps = ComponentChoice(name="one-step"), 1
        elif one_step:
            sampler, steps = ComponentChoice(name="euler"), 1
        else:
            sampler, steps = evaluation.reference_sampler, evaluation.reference_steps
        return make_generator(evaluation, self._builder, self._context, sampler, steps)

    def _column_names(self) -> tuple[str, ...]:
        """What the classes in the pictures are called, where they have names."""
        teacher = self._context.teacher
        return (teacher.class_names or ())[: self._shown()[1]] if teacher is not None else ()

    def _shown(self) -> tuple[Tensor, int, int]:
        """Indices whose balanced labels run through the first classes, ``per_class`` times; columns; classes (or 0)."""
        classes, shown = self._network.num_classes or 0, self.config.samples
        columns = min(classes or shown.max_classes, shown.max_classes)
        rows = [torch.arange(columns) + row * (classes or columns) for row in range(shown.per_class)]
        return torch.cat(rows), columns, classes


@final
class VelocityOfStudent(Teacher):
    """v(x, t, c) = u(x, t, t, c) of a student, so that `freeflow pretrain` is scored like any teacher.

    The null condition is the label after the last class, as in training with label dropout.
    """

    def __init__(self, student: AverageVelocityStudent) -> None:
        super().__init__()
        self.student = student
        self.sample_shape = student.sample_shape
        self.num_classes = student.num_classes

    def velocity(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        output = self.student(x_t, t, t, condition, None)
        return self.student.average_velocity(output, x_t, t, t)

    def null_condition(self, condition: Condition) -> Condition:
        if not isinstance(condition, Tensor) or self.num_classes is None:
            raise ConfigError("This network has no classes, so it cannot be guided; use guidance_weight=1.")
        return torch.full_like(condition, self.num_classes)


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Layers as they are when the student is used: where no average is scored, it is the network in training itself."""
    training = [part for part in network.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _is_image(x: Tensor) -> bool:
    return x.ndim == 4


def _scatter(clouds: list[tuple[str, Tensor]]) -> Tensor | None:
    flat = [(title, x.flatten(1)[:, :2]) for title, x in clouds]
    return scatter_image(flat) if flat[0][1].shape[1] == 2 else None
