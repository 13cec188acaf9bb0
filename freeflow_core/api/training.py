"""Training: a configuration resolved, planned and run; one objective, or several on one teacher."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypedDict, Unpack

from freeflow_core.api.progress import shown
from freeflow_core.api.results import RunResult
from freeflow_core.config import RunConfig, load_run_config
from freeflow_core.config.compare import CompareConfig, load_compare_config
from freeflow_core.config.load import DEFAULT_PRESETS, choose_preset, lay_settings, merge, resolve
from freeflow_core.engine.process import launched_processes
from freeflow_core.engine.run import Run
from freeflow_core.errors import ConfigError
from freeflow_core.evaluation.scoring import Scoring
from freeflow_core.plugin import Manager, Registry
from freeflow_core.tools.compare.runner import CompareResult, Comparison, each_message_once
from freeflow_core.tools.cost.plan import Plan, make_plan, with_measured_rate
from freeflow_core.tools.cost.proposal import Proposal
from freeflow_core.tools.cost.proposal import propose as find_fitting
from freeflow_core.tools.cost.rate import Rate, RateFrom
from freeflow_core.tools.cost.shortage import memory_told

Part: TypeAlias = str | Mapping[str, Any]
"""A component: its name, or its name and options in one mapping."""


class ScoreSettings(TypedDict, total=False):
    """Components and sections of a configuration that say what is scored and how; see :class:`RunSettings`."""

    teacher: Part
    codec: Part
    reference: Part
    name: str
    seed: int
    evaluation: Mapping[str, Any]
    runtime: Mapping[str, Any]


class RunSettings(ScoreSettings, total=False):
    """What is laid over the preset: components by kind, and sections, under the names that files and ``--set`` use.

    A component of another name drops the options of the preset's; the settings of a section are laid over the preset's.
    """

    objective: Part
    student: Part
    source: Part
    training: Mapping[str, Any]
    logging: Mapping[str, Any]
    checkpointing: Mapping[str, Any]
    samples: Mapping[str, Any]
    trackers: Sequence[Part]


def resolve_config(
    command: str,
    *,
    manager: Manager | None = None,
    preset: str | None = None,
    config_file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    settings: Iterable[str] = (),
    **chosen: Unpack[RunSettings],
) -> RunConfig:
    """Preset, file, overrides, what is chosen and ``a.b=c`` settings as one validated configuration.

    Nothing is taken from a preset unless one is named. Raises ``ConfigError``.
    """
    registry = Registry(manager or Manager.load())
    overrides = merge(_named(overrides or {}), _named(chosen))
    return load_run_config(
        registry, command, preset=preset, file=config_file, overrides=overrides, assignments=settings
    )


def distill(
    config: RunConfig | None = None,
    *,
    preset: str | None = None,
    settings: Iterable[str] = (),
    output: str | Path | None = None,
    resume: bool = False,
    progress: bool | None = None,
    manager: Manager | None = None,
    **chosen: Unpack[RunSettings],
) -> RunResult:
    """Train a student from a teacher, evaluate it, and write the run folder.

    Args:
        config: a resolved configuration; None to start from a preset.
        preset: its name; None for the one made for ``teacher``, or without a teacher ``"mnist"``.
        settings: ``a.b=c`` strings, laid over all else.
        output: run folder; None for ``runs/<name>``.
        resume: go on from the newest checkpoint of ``output`` (or of the newest run of that name).
        progress: show a bar; None: in a notebook and on a terminal.
        chosen: see :class:`RunSettings`, e.g. ``teacher="mnist", training={"images": 20_000}``.

    Raises:
        ConfigError: settings, names or parts that do not fit.
        FreeflowError: interruption, a non-finite step, or a folder that cannot be written.
    """
    return _run("distill", config, preset, settings, output, resume, progress, manager, chosen)


def pretrain(
    config: RunConfig | None = None,
    *,
    preset: str | None = None,
    settings: Iterable[str] = (),
    output: str | Path | None = None,
    resume: bool = False,
    progress: bool | None = None,
    manager: Manager | None = None,
    **chosen: Unpack[RunSettings],
) -> RunResult:
    """Train a teacher from data; arguments and errors as for :func:`distill`, the preset that of ``source``."""
    return _run("pretrain", config, preset, settings, output, resume, progress, manager, chosen)


def compare(
    config: CompareConfig | None = None,
    *,
    objectives: Iterable[str] = (),
    seeds: int | None = None,
    budget: str | Mapping[str, float] | None = None,
    preset: str | None = None,
    config_file: Path | None = None,
    settings: Iterable[str] = (),
    settings_for: Mapping[str, Mapping[str, Any]] | Iterable[str] = (),
    sweep: str | Mapping[str, Sequence[Any]] | None = None,
    score: str | None = None,
    output: str | Path | None = None,
    dry_run: bool = False,
    progress: bool | None = None,
    manager: Manager | None = None,
    **chosen: Unpack[RunSettings],
) -> CompareResult:
    """Train several objectives on one teacher with one budget, score them alike, and put them into one table.

    The same call again goes on where an earlier one stopped; what is finished is not repeated.

    Args:
        config: a resolved comparison; None to resolve the arguments up to ``score``, and ``chosen``, here, over
            ``preset`` and ``config_file`` (without either: ``"digits"``).
        objectives: names.
        seeds: runs of each objective; None: the preset's, else 3.
        budget: ``{"images": N}`` or ``{"forwards": N}`` of training, or ``"images=N"``; None: the preset's.
        settings: ``a.b=c`` strings for all runs.
        settings_for: by objective, e.g. ``{"freeflow": {"objective": {"balance": "weighted"}}}``, or
            ``objective:a.b=c`` strings.
        sweep: a setting that takes several values in turn: ``{"a.b": [v1, v2]}``, or ``"a.b=v1,v2"``.
        score: what is compared; None: a distance to data.
        output: the comparison's folder; None for ``runs/compare-<name>``.
        dry_run: measure what each objective costs, and train and write nothing.
        progress: show a bar; None: in a notebook and on a terminal.
        chosen: of all runs, see :class:`RunSettings`; ``source``: data for the objectives that train on data.

    Raises:
        ConfigError: settings, names or parts that do not fit, or a folder with another comparison.
        Interrupted: Ctrl-C; what is finished stays.
        FreeflowError: a full disk; what is finished stays. A run that fails raises nothing: see ``failed``.
    """
    manager = manager or Manager.load()
    if config is None:
        of_each, texts_for = (settings_for, ()) if isinstance(settings_for, Mapping) else ({}, settings_for)
        config = load_compare_config(
            Registry(manager),
            preset=preset if preset or config_file else DEFAULT_PRESETS["compare"],
            file=config_file,
            overrides=_named(chosen),
            comparison={
                "objectives": tuple(objectives) or None,
                "seeds": seeds,
                "budget": budget,
                "sweep": sweep,
                "score": score,
                "settings_for": {name: _named(own) for name, own in of_each.items()},
            },
            assignments=settings,
            assignments_for=texts_for,
        )
    elif preset or config_file or chosen:
        raise ConfigError("Got a complete comparison and also what would change it. Give one of the two.")
    with each_message_once(), shown(manager, progress):
        comparison = Comparison(config, manager, None if output is None else Path(output))
        return comparison.plan() if dry_run else comparison.execute()


def plan(
    config: RunConfig,
    *,
    num_processes: int | None = None,
    device_memory: float | None = None,
    rate: float | None = None,
    measure: bool = False,
    manager: Manager | None = None,
) -> Plan:
    """What a run would cost (``--dry-run``): parameters, memory by kind, passes, operations and hours.

    Nothing is trained, written or started: neither the device nor the memory nor published weights need to be there.

    Args:
        num_processes: that share the batch; None for as many as a launcher started (``WORLD_SIZE``), or one.
        device_memory: GiB of the device to plan for, a GPU unless ``runtime.device`` says otherwise; None: what is
            free on the one that is here.
        rate: TFLOP/s that a device keeps up in the steps of this run; None: what a matrix product reaches here.
        measure: take a few real steps here, and go by their rate.

    Raises ``ConfigError``: whatever the run itself would refuse.
    """
    registry = Registry(manager or Manager.load())
    if num_processes is None:
        num_processes = launched_processes()
    memory = None if device_memory is None else int(device_memory * 2**30)
    given = None if rate is None else Rate(1e12 * rate, RateFrom.GIVEN)
    found = make_plan(config, registry, num_processes, device_memory=memory, rate=given)
    if not measure:
        return found
    return with_measured_rate(found, config, registry)


def propose(config: RunConfig, plan: Plan, *, manager: Manager | None = None) -> Proposal | None:
    """Settings with which a run of ``config`` fits the device of its ``plan``; None where none of those tried does."""
    return find_fitting(config, plan, Registry(manager or Manager.load()))


def _run(
    command: str,
    config: RunConfig | None,
    preset: str | None,
    settings: Iterable[str],
    output: str | Path | None,
    resume: bool,
    progress: bool | None,
    manager: Manager | None,
    chosen: RunSettings,
) -> RunResult:
    manager = manager or Manager.load()
    config = settled(command, manager, config, preset, None, settings, chosen)
    folder = None if output is None else Path(output)
    with shown(manager, progress), memory_told(config, Registry(manager)):
        outcome = Run(config, command, manager, output=folder, resume=resume, scorer=Scoring).execute()
    return RunResult(**vars(outcome), config=config, manager=manager)


def settled(
    command: str,
    manager: Manager,
    config: RunConfig | None,
    preset: str | None,
    file: Path | None,
    settings: Iterable[str],
    chosen: Mapping[str, object],
) -> RunConfig:
    """The configuration of a call: what is chosen and the settings over ``config``, else over file or preset, where
    neither is named over that of the teacher or source. Raises ``ConfigError``."""
    registry, parts, settings = Registry(manager), _named(chosen), tuple(settings)
    if config is None:
        named = {kind: parts.get(kind, {}).get("name") for kind in ("teacher", "source")}
        preset = preset or (None if file else choose_preset(registry, command, **named))
        return load_run_config(registry, command, preset=preset, file=file, overrides=parts, assignments=settings)
    if preset is not None:
        raise ConfigError(
            f"Got a complete configuration and also the preset {preset!r}, which would replace it. Give one of the "
            "two; settings can change either."
        )
    if not parts and not settings:
        return config
    laid = lay_settings(merge(config.model_dump(mode="json"), parts), settings)
    return resolve(registry, laid).from_preset(config.preset)


def _named(values: Mapping[str, object]) -> dict[str, Any]:
    """Components given by name alone as mappings; None, as anywhere, is no choice."""
    kinds = ("teacher", "objective", "student", "source", "codec", "reference")
    given = {key: value for key, value in values.items() if value is not None}
    return {key: {"name": v} if key in kinds and isinstance(v, str) else v for key, v in given.items()}
