"""From the options of a command to a run configuration. No torch: a usage error costs a fraction of a second."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from freeflow_cli.session import Session

if TYPE_CHECKING:
    from freeflow_core.config import RunConfig

DEFAULT_PRESET = "digits"
"""What `freeflow distill` and `freeflow pretrain` do without options."""

CONFIG_NAME = "config.yaml"
"""The configuration in a run's folder, which --resume goes on with."""


@dataclass(frozen=True)
class Request:
    """What the user asked for. Names replace a component of the preset or file and drop its options."""

    command: str
    preset: str | None = None
    file: Path | None = None
    components: dict[str, str | None] = field(default_factory=dict)
    seed: int | None = None
    assignments: tuple[str, ...] = ()
    resume_in: Path | None = None

    def load(self, session: Session) -> RunConfig:
        """The validated configuration. Raises :class:`ConfigError` as :func:`load_run_config` does.

        A run that is resumed by its folder goes on with the configuration in it, unless another is named.
        """
        from freeflow_core.config import load_run_config

        preset, file = self.preset, self.file
        if preset is None and file is None and self.resume_in is not None:
            saved = self.resume_in / CONFIG_NAME
            file = saved if saved.is_file() else None
        overrides: dict[str, object] = {kind: {"name": name} for kind, name in self.components.items() if name}
        if self.seed is not None:
            overrides["seed"] = self.seed
        return load_run_config(
            session.registry(),
            self.command,
            preset=preset if preset or file else self._default_preset(session),
            file=file,
            overrides=overrides,
            assignments=self.assignments,
        )

    def _default_preset(self, session: Session) -> str:
        """The preset made for the teacher asked for, or named after the source; else the digits'."""
        registry = session.registry()
        found = registry.preset_for(self.command, self.components.get("teacher"))
        source = self.components.get("source")
        return found or (source if source in registry.presets(self.command) else None) or DEFAULT_PRESET
