"""Objects that several test files of the command line use."""

from __future__ import annotations

from typing import Any

from freeflow_core.plugin import hookimpl


class BrokenTeachers:
    @hookimpl
    def freeflow_teachers(self) -> Any:
        raise RuntimeError("nothing\nworks")


class BrokenCommands:
    @hookimpl
    def freeflow_commands(self, app: Any) -> None:
        raise RuntimeError("nothing\nworks")


class BrokenHook:
    @staticmethod
    def of(hook: str) -> Any:
        return {"freeflow_teachers": BrokenTeachers, "freeflow_commands": BrokenCommands}[hook]()
