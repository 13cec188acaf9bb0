"""What this plugin offers."""

from collections.abc import Iterable

from freeflow_core.plugin import Component, hookimpl

freeflow_api = "1"


@hookimpl
def freeflow_teachers() -> Iterable[Component]:
    """Networks of any origin, read with the convention that their options state."""
    return [
        Component("callable", ".teacher:OwnNetworkTeacher", ".config:CallableTeacherConfig"),
        Component("torch-file", ".teacher:OwnNetworkTeacher", ".config:TorchFileTeacherConfig"),
        Component("diffusers-transformer", ".diffusers_teacher:DiffusersTeacher", ".config:DiffusersTeacherConfig"),
    ]


@hookimpl
def freeflow_students() -> Iterable[Component]:
    """The teacher's network itself."""
    return [Component("wrapped", ".wrapped:WrappedStudent", ".config:WrappedStudentConfig")]
