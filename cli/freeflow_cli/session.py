"""What every command gets: the loaded plugins, and the progress display."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, final

import typer

from freeflow_cli.console import is_main_process, messages, warn
from freeflow_core.plugin import Manager, Registry
from freeflow_core.plugin.culprit import described

if TYPE_CHECKING:
    from freeflow_cli.progress import ProgressObserver

PROGRESS_PLUGIN = "console-progress"


@final
class Session:
    """One invocation of the command line."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self._observer: ProgressObserver | None = None
        self._warned: set[str] = set()
        self._command_problems: list[str] = []

    @classmethod
    def of(cls, context: typer.Context) -> Session:
        """The session that :func:`freeflow_cli.main.build_app` put into the application's context."""
        session = context.find_object(cls)
        if session is None:
            raise RuntimeError("the command was not called through an application made by build_app()")
        return session

    @staticmethod
    @contextmanager
    def loading() -> Iterator[None]:
        """For loading modules: looking for garbage among what they make, which stays, takes a seventh of the time."""
        gc.disable()
        try:
            yield
        finally:
            gc.enable()
            gc.freeze()

    def add_commands(self, app: typer.Typer) -> None:
        for implementation in self.manager.hook.freeflow_commands.get_hookimpls():
            arguments = {"app": app} if "app" in implementation.argnames else {}
            try:
                implementation.function(**arguments)
            except Exception as error:
                told = described(error)
                self._command_problems.append(f"plugin {implementation.plugin_name!r} adds no commands: {told}")

    def registry(self, **named: str | None) -> Registry:
        """What the plugins offer. What a plugin does wrong costs one warning line.

        ``named`` components are looked up by kind, so that a misspelt name is told before torch is imported.
        """
        registry = Registry(self.manager)
        self.warn_about_plugins(registry.warnings)
        for kind, name in named.items():
            if name is not None:
                registry.component(kind, name)
        return registry

    def warn_about_plugins(self, others: Iterable[str] = ()) -> None:
        """One line for each problem of a plugin, and each of ``others``, that was not told before."""
        if not is_main_process():
            return
        problems = [
            f"plugin {plugin} {'works in part only' if plugin.loaded else 'is not available'}: {plugin.problem}"
            for plugin in self.manager.problems
        ]
        for text in (*self.manager.warnings, *problems, *others, *self._command_problems):
            if text not in self._warned:
                self._warned.add(text)
                warn(text)

    @contextmanager
    def progress(self, origin: str = "") -> Iterator[None]:
        """Show the progress of the run made inside, and leave the terminal clean whatever happens.

        ``origin`` is where the run's settings come from, in words.
        """
        from freeflow_cli.progress import ProgressObserver

        if self._observer is None:
            self._observer = ProgressObserver(messages())
            self.manager.register(self._observer, PROGRESS_PLUGIN)
        self._observer.origin = origin
        try:
            yield
        finally:
            self._observer.close()
