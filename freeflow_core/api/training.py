"""Training: a configuration resolved, planned and run; one objective, or several on one teacher."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from freeflow_core.config import RunConfig, load_run_config
from freeflow_core.config.compare import CompareConfig, load_compare_config
from freeflow_core.config.load import DEFAULT_PRESETS, lay_settings, resolve
from freeflow_core.engine.run import Run, RunResult
from freeflow_core.errors import ConfigError
from freeflow_core.evaluation.scoring import Scoring
from freeflow_core.plugin import Manager, Registry
from freeflow_core.tools.compare.runner import CompareResult, Comparison, each_message_once
from freeflow_core.tools.cost.plan import Plan, make_plan


def resolve_config(
    command: str,
    *,
    manager: Manager | None = None,
    preset: str | None = None,
    config_file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    settings: Iterable[str] = (),
) -> RunConfig:
    """Preset, file, overrides and ``a.b=c`` settings as one validated configuration. Raises ``ConfigError``."""
    registry = Registry(manager or Manager.load())
    return load_run_config(
        registry, command, preset=preset, file=config_file, overrides=overrides, assignments=settings
    )


def distill(
    config: RunConfig | None = None,
    *,
    preset: str | None = None,
    settings: Iterable[str] = (),
    output: Path | None = None,
    resume: bool = False,
    manager: Manager | None = None,
) -> RunResult:
    """Train a student from a teacher, evaluate it, and write the run folder.

    Args:
        config: a resolved configuration; None to start from ``preset`` (default ``"mnist"``).
        settings: ``a.b=c`` strings laid over it.
        output: run folder; None for ``runs/<name>``.
        resume: go on from the newest checkpoint of ``output`` (or of the newest run of that name).

    Raises:
        ConfigError: settings, names or parts that do not fit.
        FreeflowError: interruption, a non-finite step, or a folder that cannot be written.
    """
    return _run("distill", config, preset, settings, output, resume, manager)


def pretrain(
    config: RunConfig | None = None,
    *,
    preset: str | None = None,
    settings: Iterable[str] = (),
    output: Path | None = None,
    resume: bool = False,
    manager: Manager | None = None,
) -> RunResult:
    """Train a teacher from data; arguments and errors as for :func:`distill`."""
    return _run("pretrain", config, preset, settings, output, resume, manager)


def compare(
    config: CompareConfig | None = None,
    *,
    teacher: str | None = None,
    objectives: Iterable[str] = (),
    seeds: int | None = None,
    budget: str | None = None,
    source: str | None = None,
    preset: str | None = None,
    config_file: Path | None = None,
    settings: Iterable[str] = (),
    settings_for: Iterable[str] = (),
    sweep: str | None = None,
    output: Path | None = None,
    dry_run: bool = False,
    manager: Manager | None = None,
) -> CompareResult:
    """Train several objectives on one teacher with one budget, score them alike, and put them into one table.

    The same call again goes on where an earlier one stopped; what is finished is not repeated.

    Args:
        config: a resolved comparison; None to resolve the arguments up to ``sweep`` here, over ``preset`` and
            ``config_file`` (without either: ``"digits"``).
        objectives: names.
        seeds: runs of each objective; None: the preset's, else 3.
        budget: ``"images=N"`` or ``"forwards=N"`` of training; None: the preset's.
        source: data for the objectives that train on data.
        settings: ``a.b=c`` strings for all runs; ``settings_for``: ``objective:a.b=c`` strings for one objective's.
        sweep: ``a.b=v1,v2,...``: a setting that takes several values in turn.
        output: the comparison's folder; None for ``runs/compare-<name>``.
        dry_run: measure what each objective costs, and train and write nothing.

    Raises:
        ConfigError: settings, names or parts that do not fit, or a folder with another comparison.
        Interrupted: Ctrl-C; what is finished stays.
        FreeflowError: a full disk; what is finished stays. A run that fails raises nothing: see ``failed``.
    """
    manager = manager or Manager.load()
    if config is None:
        names = {"teacher": teacher, "source": source}
        config = load_compare_config(
            Registry(manager),
            preset=preset if preset or config_file else "digits",
            file=config_file,
            overrides={kind: {"name": name} for kind, name in names.items() if name},
            comparison={"objectives": tuple(objectives) or None, "seeds": seeds, "budget": budget, "sweep": sweep},
            assignments=settings,
            assignments_for=settings_for,
        )
    with each_message_once():
        comparison = Comparison(config, manager, output)
        return comparison.plan() if dry_run else comparison.execute()


def plan(config: RunConfig, *, num_processes: int | None = None, manager: Manager | None = None) -> Plan:
    """What a run would cost (``--dry-run``): parameters, memory by kind, passes and operations per step.

    Nothing is trained, written or started: neither the device nor the memory nor published weights need to be there.

    ``num_processes``: processes that share the batch; None for as many as a launcher started (``WORLD_SIZE``), or one.

    Raises ``ConfigError``: whatever the run itself would refuse.
    """
    if num_processes is None:
        num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    return make_plan(config, Registry(manager or Manager.load()), num_processes)


def _run(
    command: str,
    config: RunConfig | None,
    preset: str | None,
    settings: Iterable[str],
    output: Path | None,
    resume: bool,
    manager: Manager | None,
) -> RunResult:
    manager = manager or Manager.load()
    if config is None:
        config = resolve_config(command, manager=manager, preset=preset or DEFAULT_PRESETS[command], settings=settings)
    elif preset is not None:
        raise ConfigError(
            f"Got a complete configuration and also the preset {preset!r}, which would replace it. Give one of the "
            "two; settings can change either."
        )
    elif settings := tuple(settings):
        config = resolve(Registry(manager), lay_settings(config.model_dump(mode="json"), settings))
    return Run(config, command, manager, output=output, resume=resume, scorer=Scoring).execute()
