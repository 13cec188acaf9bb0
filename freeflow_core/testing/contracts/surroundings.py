"""What a component of one kind needs of the others: teachers for students, students for objectives and samplers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

from freeflow_core.config import ComponentChoice
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import PolicyStudent, Student, Teacher
from freeflow_core.testing.contracts.base import ComponentContract

Choice: TypeAlias = tuple[str, Mapping[str, Any]]

TEACHERS: Sequence[Choice] = (
    ("gaussian-mixture", {"num_modes": 4, "num_classes": 2, "std": 0.3}),
    ("digits", {}),
)
"""Small teachers that come with freeflow, tried in order where a contract names none."""

_MLP = {"width": 16, "depth": 1}


class WithTeacher(ComponentContract):
    """A contract whose component lives beside a teacher.

    Attributes:
        teacher: name of the teacher that stands beside it; None: the first of freeflow's own that fits.
        teacher_options: that teacher's options.
    """

    teacher: ClassVar[str | None] = None
    teacher_options: ClassVar[Mapping[str, Any]] = {}

    def teachers(self) -> Sequence[Choice]:
        """The teachers to try."""
        return TEACHERS if self.teacher is None else ((self.teacher, self.teacher_options),)

    def build_teacher(self, choice: Choice, device: str = "cpu") -> Teacher:
        """One of them, frozen."""
        name, options = choice
        return self.builder(device).teacher(ComponentChoice(name=name, options=dict(options))).float()

    def student_beside(self, teacher: Teacher, name: str, options: Mapping[str, Any], device: str = "cpu") -> Student:
        """A student built beside a teacher, with the weights it starts from."""
        student: Student = self.build_other("student", name, options, device, teacher=teacher)
        student.load_teacher(teacher)
        return student.to(device).float()

    def default_student(self, teacher: Teacher, requires: type[Any], device: str = "cpu") -> Student:
        """A tiny student of the class that an objective or sampler needs."""
        name = "mlp-policy" if issubclass(requires, PolicyStudent) else "mlp"
        options = _MLP | ({"num_substeps": 8} if name == "mlp-policy" else {})
        student = self.student_beside(teacher, name, options, device)
        if not isinstance(student, requires):
            raise ConfigError(
                f"{self.kind} {self.component!r} needs a {requires.__name__}, and freeflow brings no tiny one. Set "
                "`student` (and `student_options`) of the contract to one that fits."
            )
        return student
