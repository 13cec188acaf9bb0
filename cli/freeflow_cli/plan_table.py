"""What `--dry-run` prints: the networks and how often a step runs them, the memory by kind, and the work."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from freeflow_cli.formats import size

if TYPE_CHECKING:
    from freeflow_core.api import Plan

_KINDS = ("weights", "gradients", "optimizer", "average", "memory")
"""Parts of a network's memory, as in :class:`freeflow_core.api.RolePlan`."""


def network_table(plan: Plan) -> Table:
    """One line for each network: its size, and forward passes per image of the batch in one step."""
    table = _table("Networks, and forward passes per image of a step")
    for header in ("parameters", "passes with gradient", "without gradient"):
        table.add_column(header, justify="right")
    for network in plan.networks:
        passes = (f"{p:.2f}" if p else "-" for p in (network.gradient_passes, network.other_passes))
        table.add_row(Text(network.name), f"{network.parameters:,}", *passes)
    return table


def memory_table(plan: Plan) -> Table:
    """One line for each network by kind, then what is held beside them, then the sum."""
    unit, name = (2**30, "GiB") if plan.total >= 2**30 else (2**20, "MiB")

    def cell(num_bytes: int) -> str:
        return f"{num_bytes / unit:.2f}" if num_bytes else "-"

    table = _table(f"Memory per process, {name}")
    for header in (*_KINDS[:-1], "sum"):
        table.add_column(header, justify="right", min_width=len("000.00"))
    for network in plan.networks:
        table.add_row(Text(network.name), *(cell(getattr(network, kind)) for kind in _KINDS))
    blanks = [""] * (len(_KINDS) - 1)
    table.add_row("activations", *blanks, cell(plan.activations))
    if plan.buckets:
        table.add_row("gradient exchange", *blanks, cell(plan.buckets))
    table.add_row("total", *blanks, cell(plan.total), style="bold")
    return table


def facts(plan: Plan) -> Iterator[tuple[str, str]]:
    """Lines below the tables: (label, value)."""
    yield "at one moment", f"{size(plan.peak)} at most; in the total every kind is at its largest"
    if plan.free is not None:
        yield "free now", f"{size(plan.free)} ({plan.device})"
    yield "planned for", f"{plan.device}, {plan.precision}, {_of(plan.num_processes, 'process', 'processes')}"
    processes, passes = _of(plan.num_processes, "process", "processes"), _of(plan.accumulation, "pass", "passes")
    yield "batch", f"{plan.batch_size:,} images: {processes} x {passes} of {plan.rows:,}"
    yield "length", f"{plan.images:,} images, {plan.steps:,} steps"
    yield "work", f"{_flops(plan.flops_per_step)} per step, {_flops(plan.flops)} in all"
    if plan.teacher:
        yield "teacher", plan.teacher
    if plan.load_report is not None:
        yield "from the teacher", plan.load_report


def _table(title: str) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False
    )
    table.add_column("", min_width=len("gradient exchange"))
    return table


def _of(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _flops(number: float) -> str:
    """Operations of matrix products with a prefix, from at least ten of it on."""
    scale, prefix = next(((s, p) for s, p in ((1e18, "E"), (1e15, "P"), (1e12, "T")) if number >= 10 * s), (1e9, "G"))
    return f"{number / scale:,.1f} {prefix}FLOP"
