"""Several objectives on one teacher, in one table."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from freeflow_core.config.compare import CompareConfig, load_compare_config
from freeflow_core.plugin import Manager, Registry
from freeflow_core.tools.compare.runner import CompareResult, Comparison, each_message_once


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
            comparison={
                "objectives": tuple(objectives) or None,
                "seeds": seeds,
                "budget": budget,
                "sweep": sweep,
            },
            assignments=settings,
            assignments_for=settings_for,
        )
    with each_message_once():
        comparison = Comparison(config, manager, output)
        return comparison.plan() if dry_run else comparison.execute()
