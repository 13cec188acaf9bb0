"""`freeflow teacher check`: is a teacher read as its network means it, and what can it do here?"""

from freeflow_core.teacher_check.proposals import Proposal
from freeflow_core.teacher_check.report import TeacherReport, check_built_teacher

__all__ = ["Proposal", "TeacherReport", "check_built_teacher"]
