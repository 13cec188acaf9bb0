"""``freeflow distill``, ``pretrain`` and ``config show``: a configuration resolved, then planned, run or printed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Column, Table
from rich.text import Text

from freeflow_cli.commands import options
from freeflow_cli.commands.options import Planned, Request
from freeflow_cli.console import is_main_process, print_columns, print_line, print_result, size, stdout, warn
from freeflow_cli.session import Session
from freeflow_cli.tables import make_table

if TYPE_CHECKING:
    from freeflow_core.api import Plan, Proposal


def distill(
    context: typer.Context,
    teacher: options.TeacherName = None,
    objective: options.ObjectiveName = None,
    student: options.StudentName = None,
    source: options.SourceName = None,
    preset: options.PresetName = None,
    config: options.ConfigFile = None,
    assignments: options.Assignments = None,
    seed: options.Seed = None,
    output: options.Output = None,
    resume: options.Resume = False,
    dry_run: options.DryRun = False,
    device_memory: options.DeviceMemory = None,
    processes: options.Processes = None,
    rate: options.DeviceRate = None,
    measure: options.Measure = False,
) -> None:
    """Distil a teacher into a one-step student. Without options: the mnist preset, in minutes on a CPU."""
    chosen = {"teacher": teacher, "objective": objective, "student": student, "source": source}
    request = Request("distill", preset, config, chosen, seed, tuple(assignments or ()), output if resume else None)
    planned = Planned(device_memory, processes, rate, measure)
    train(Session.of(context), request, output, resume, dry_run, planned)


def pretrain(
    context: typer.Context,
    source: options.SourceName = None,
    student: options.StudentName = None,
    preset: options.PresetName = None,
    config: options.ConfigFile = None,
    assignments: options.Assignments = None,
    seed: options.Seed = None,
    output: options.Output = None,
    resume: options.Resume = False,
    dry_run: options.DryRun = False,
    device_memory: options.DeviceMemory = None,
    processes: options.Processes = None,
    rate: options.DeviceRate = None,
    measure: options.Measure = False,
) -> None:
    """Train a teacher from data. Without options: the digits preset, in minutes on a CPU."""
    chosen = {"source": source, "student": student}
    request = Request("pretrain", preset, config, chosen, seed, tuple(assignments or ()), output if resume else None)
    planned = Planned(device_memory, processes, rate, measure)
    train(Session.of(context), request, output, resume, dry_run, planned)


def show(
    context: typer.Context,
    command: Annotated[Literal["distill", "pretrain"], typer.Option(help="Whose presets and defaults.")] = "distill",
    teacher: options.TeacherName = None,
    objective: options.ObjectiveName = None,
    student: options.StudentName = None,
    source: options.SourceName = None,
    preset: options.PresetName = None,
    config: options.ConfigFile = None,
    assignments: options.Assignments = None,
    seed: options.Seed = None,
    as_json: options.AsJSON = False,
) -> None:
    """Print the resolved configuration, every default written out. The output is a valid --config file."""
    from freeflow_core.config import to_yaml

    chosen = {"teacher": teacher, "objective": objective, "student": student, "source": source}
    resolved = Request(command, preset, config, chosen, seed, tuple(assignments or ())).load(Session.of(context))
    typer.echo(resolved.model_dump_json(indent=2) if as_json else to_yaml(resolved).rstrip("\n"))


def train(
    session: Session, request: Request, folder: Path | None, resume: bool, dry_run: bool, planned: Planned
) -> None:
    """Carry out a training command. The configuration is checked before torch is imported."""
    planned.check(dry_run)
    begun = request.settled(session)
    config = begun.load(session)
    origin = options.origin(config.preset, begun.file)
    with Session.loading():
        from freeflow_core import api

    if not dry_run:
        command = api.pretrain if request.command == "pretrain" else api.distill
        with session.progress(origin):
            result = command(config, output=folder, resume=resume, progress=False, manager=session.manager)
        print_result(result, request.command, config)
        return
    plan = api.plan(config, manager=session.manager, **dataclasses.asdict(planned))
    if not is_main_process():
        return
    stdout().print(network_table(plan))
    stdout().print(memory_table(plan))
    told = [("settings", origin), *facts(plan)]
    print_columns([(Text(name, style="bold"), Text(value)) for name, value in told])
    print_line("Dry run: nothing was trained or written.")
    for warning in plan.warnings:
        warn(warning)
    if not plan.fits:
        found = api.propose(config, plan, manager=session.manager)
        for line in advice(plan, found, request):
            print_line(line)


def advice(plan: Plan, found: Proposal | None, request: Request) -> Iterator[str]:
    """What makes a run fit that does not, and what that costs."""
    if found is None:
        fixed = plan.total - plan.activations
        yield (
            f"No micro-batches and recomputed activations make it fit: weights, gradients and optimizer alone take "
            f"{size(fixed)}. Less room for them: training.optimizer.moments=8bit, runtime.teacher_weights=bf16 (of a "
            "bf16 run), more processes with runtime.sharding=full, a smaller student."
        )
        return
    more = found.plan.flops_per_step / plan.flops_per_step
    yield f"This fits, with {size(found.plan.total)} and {more:.2f} times the operations, {_time(found.plan)}:"
    yield f"  {request.line(found.settings, plan.num_processes)}"


_KINDS = ("weights", "gradients", "optimizer", "average", "memory")
"""Parts of a network's memory, as in :class:`freeflow_core.api.RolePlan`."""


def network_table(plan: Plan) -> Table:
    """One line for each network: its size, and forward passes per image of the batch in one step."""
    columns = ("parameters", "passes with gradient", "without gradient")
    table = _table("Networks, and forward passes per image of a step", *columns)
    for network in plan.networks:
        passes = (f"{p:.2f}" if p else "-" for p in (network.gradient_passes, network.other_passes))
        table.add_row(Text(network.name), f"{network.parameters:,}", *passes)
    return table


def memory_table(plan: Plan) -> Table:
    """One line for each network by kind, then what is held beside them, then the sum."""
    unit, name = (2**30, "GiB") if plan.total >= 2**30 else (2**20, "MiB")

    def cell(num_bytes: int) -> str:
        return f"{num_bytes / unit:.2f}" if num_bytes else "-"

    table = _table(f"Memory per process, {name}", *_KINDS[:-1], "sum")
    for network in plan.networks:
        table.add_row(Text(network.name), *(cell(getattr(network, kind)) for kind in _KINDS))
    blanks = [""] * (len(_KINDS) - 1)
    table.add_row("activations", *blanks, cell(plan.activations))
    if plan.buckets:
        table.add_row("gradient exchange", *blanks, cell(plan.buckets))
    table.add_row("total", *blanks, cell(plan.total), style="bold")
    return table


def _table(title: str, *numbers: str) -> Table:
    columns = [Column(name, justify="right", min_width=len("000.00")) for name in numbers]
    names = Column(min_width=len("gradient exchange"))
    return make_table([names, *columns], title=title, title_justify="left", title_style="")


def facts(plan: Plan) -> Iterator[tuple[str, str]]:
    """Lines below the tables: (label, value)."""
    processes, passes = _of(plan.num_processes, "process", "processes"), _of(plan.accumulation, "pass", "passes")
    yield "at one moment", f"{size(plan.peak)} at most; in the total every kind is at its largest"
    if offloaded := sum(network.offloaded for network in plan.networks):
        yield "on the host", f"{size(offloaded)} of moments (runtime.offload_optimizer)"
    if plan.free is not None:
        yield "free now", f"{size(plan.free)} ({plan.device})"
    yield "planned for", f"{plan.device}, {plan.precision}, {processes}"
    yield "batch", f"{plan.batch_size:,} images: {processes} x {passes} of {plan.rows:,}"
    yield "length", f"{plan.images:,} images, {plan.steps:,} steps"
    yield "work", f"{_flops(plan.flops_per_step)} per step, {_flops(plan.flops)} in all"
    yield "time", _time(plan)
    if plan.teacher:
        yield "teacher", plan.teacher
    if plan.load_report is not None:
        yield "from the teacher", plan.load_report


_ABSENT_RATE = 100e12
"""Operations a second assumed of a process's device that cannot be asked."""


def _time(plan: Plan) -> str:
    operations = plan.rate.operations if plan.rate else _ABSENT_RATE
    hours = plan.flops / operations / 3600
    rate = f"at {operations / 1e12:,.3g} TFLOP/s"
    if plan.rate is None:
        rate += ", assumed of a device that is not here (--rate)"
    elif plan.rate.origin == "products":
        rate += " that matrix products reach here now; no run is faster"
    elif plan.rate.origin == "steps":
        images = plan.batch_size * operations * plan.num_processes / plan.flops_per_step
        rate += f" of its own steps, {images:,.3g} images/s"
    each = f"{_hours(hours / plan.num_processes)}, "
    return f"{each}{hours:,.1f} device-hours, {rate}" if plan.num_processes > 1 else each + rate


def _hours(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"


def _of(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _flops(number: float) -> str:
    """Operations of matrix products with a prefix, from at least ten of it on."""
    scale, prefix = next(((s, p) for s, p in ((1e18, "E"), (1e15, "P"), (1e12, "T")) if number >= 10 * s), (1e9, "G"))
    return f"{number / scale:,.1f} {prefix}FLOP"
