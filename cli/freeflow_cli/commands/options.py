"""From the options that several commands share to a run configuration. No torch."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from freeflow_cli.session import Session
from freeflow_core.plugin import Component, Preset, Registry, WeightFile

if TYPE_CHECKING:
    from freeflow_core.config import RunConfig


Completion = Callable[[typer.Context, str], list[tuple[str, str]]]


def completion(find: Callable[[Registry], Iterable[Mapping[str, Component | Preset | WeightFile]]]) -> Completion:
    """Completes names with their summaries; ``find`` says which mappings of the registry hold them."""

    def complete(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
        found = find(Registry(Session.of(context).manager))
        items = {name: item for mapping in found for name, item in mapping.items()}.values()  # two may share a name
        return [(i.name, i.about()[0] if isinstance(i, Component) else i.summary) for i in items]

    return complete


def presets(commands: Sequence[str], help_text: str) -> Any:
    """The option --preset."""
    found = completion(lambda registry: [registry.presets(command) for command in commands])
    return typer.Option("--preset", metavar="NAME", autocompletion=found, help=help_text)


def named(kind: str, help_text: str) -> Any:
    """The option of a component's name."""
    found = completion(lambda registry: [registry.components(kind)])
    return typer.Option(f"--{kind}", metavar="NAME", autocompletion=found, help=help_text)


def text(flag: str, metavar: str, help_text: str, *short: str) -> Any:
    """An option with a value; ``short`` are other names of it."""
    return typer.Option(flag, *short, metavar=metavar, help=help_text)


def value(metavar: str, help_text: str) -> Any:
    """An option named as its parameter is."""
    return typer.Option(metavar=metavar, help=help_text)


def settings(help_text: str) -> Any:
    """The option --set."""
    return text("--set", "KEY=VALUE", f"{help_text} Repeatable.")


def folder(help_text: str) -> Any:
    """The option --output of a folder."""
    return text("--output", "DIR", help_text, "-o")


TeacherName = Annotated[str | None, named("teacher", "Teacher, by name.")]
ObjectiveName = Annotated[str | None, named("objective", "What is minimised.")]
StudentName = Annotated[str | None, named("student", "Network to train.")]
SourceName = Annotated[str | None, named("source", "Training data.")]
CodecName = Annotated[str, named("codec", "What makes latents of the images.")]
PresetName = Annotated[
    str | None,
    presets(
        ["distill", "pretrain"],
        "Start from this preset. Default: the one made for --teacher or --source, else the command's own.",
    ),
]
TrainedStudent = Annotated[
    Path | None,
    text("--run", "PATH", "Folder of a run, a student file, hf:OWNER/NAME, or a published student.", "--student"),
]
ConfigFile = Annotated[
    Path | None, text("--config", "FILE", "YAML or JSON file; complete unless it names a preset (preset: NAME).")
]
Assignments = Annotated[list[str] | None, settings("One setting, e.g. training.images=1000; comes last.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of every training draw.")]
SampleSeed = Annotated[int, typer.Option("--seed", min=0, help="Sample i depends on (seed, i) alone.")]
Output = Annotated[Path | None, folder("Folder to write; default: a new one in runs/.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the last checkpoint of the run in --output, else the newest run.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Build everything, print what would happen, and stop.")]
PLAN = "With --dry-run"
DeviceMemory = Annotated[
    float | None,
    typer.Option(
        "--device-memory", metavar="GIB", min=0.1, rich_help_panel=PLAN,
        help="Plan for a GPU of that memory, such as 24 or 80; default: for what is here.",
    ),
]  # fmt: skip
Processes = Annotated[
    int | None,
    typer.Option(
        "--processes", metavar="N", min=1, max=100_000, rich_help_panel=PLAN,
        help="Plan for N processes, one per device; default: those that were launched.",
    ),
]  # fmt: skip
DeviceRate = Annotated[
    float | None,
    typer.Option(
        "--rate", metavar="TFLOPS", min=1e-6, rich_help_panel=PLAN,
        help="TFLOP/s that a device keeps up; default: what a matrix product reaches here.",
    ),
]  # fmt: skip
Measure = Annotated[
    bool, typer.Option("--measure", rich_help_panel=PLAN, help="Take a few real steps, and go by their rate.")
]
Precision = Annotated[
    Literal["float32", "bf16", "float64"], typer.Option("--precision", help="Of the networks; bf16 is autocast.")
]
Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps"], typer.Option("--device", help="auto: cuda, else mps, else cpu.")
]
AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def overrides(components: Mapping[str, str | None], **settings: object) -> dict[str, object]:
    """What single options lay over preset and file: components by name, and settings; None is no choice."""
    named: dict[str, object] = {kind: {"name": name} for kind, name in components.items() if name is not None}
    return named | {key: value for key, value in settings.items() if value is not None}


def origin(preset: str | None, file: Path | None) -> str:
    """Where settings come from, in words."""
    return ", ".join(part for part in (f"file {file}" if file else "", f"preset {preset}" if preset else "") if part)


@dataclass(frozen=True)
class Planned:
    """What a dry run plans for; None: what is here."""

    device_memory: float | None = None
    num_processes: int | None = None
    rate: float | None = None
    measure: bool = False

    def check(self, dry_run: bool) -> None:
        """Raises :class:`ConfigError` where they would be without effect."""
        from freeflow_core.errors import ConfigError

        if not dry_run and self != Planned():
            raise ConfigError("--device-memory, --processes, --rate and --measure belong to --dry-run. Add it.")
        if self.measure and self.rate is not None:
            raise ConfigError("--rate says how fast the device is, and --measure finds it out: give one of them.")
        if self.measure and self.device_memory is not None:
            raise ConfigError("--measure takes steps on the device that is here, and --device-memory names another.")


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

    def line(self, more: Iterable[str] = (), num_processes: int = 1) -> str:
        """The command itself, with ``more`` settings, to be pasted."""
        start = f"torchrun --nproc_per_node {num_processes} -m freeflow_cli" if num_processes > 1 else "freeflow"
        named = {**self.components, "preset": self.preset, "config": self.file, "seed": self.seed}
        options = [part for name, given in named.items() if given is not None for part in (f"--{name}", str(given))]
        options += [part for setting in (*self.assignments, *more) for part in ("--set", setting)]
        return f"{start} {self.command} {shlex.join(options)}".rstrip()

    def settled(self, session: Session) -> Request:
        """With the preset or file that the settings are laid over; a file may name a preset itself.

        A run that is resumed by its folder goes on with the configuration in it, unless another is named.
        """
        from freeflow_core.config.load import CONFIG_NAME, choose_preset

        if self.preset is not None or self.file is not None:
            return self
        if self.resume_in is not None and (saved := self.resume_in / CONFIG_NAME).is_file():
            return replace(self, file=saved)
        named = {kind: self.components.get(kind) for kind in ("teacher", "source")}
        return replace(self, preset=choose_preset(session.registry(), self.command, **named))

    def load(self, session: Session) -> RunConfig:
        """The validated configuration. Raises :class:`ConfigError` as :func:`load_run_config` does."""
        from freeflow_core.config import load_run_config

        request = self.settled(session)
        return load_run_config(
            session.registry(),
            self.command,
            preset=request.preset,
            file=request.file,
            overrides=overrides(self.components, seed=self.seed),
            assignments=self.assignments,
        )
