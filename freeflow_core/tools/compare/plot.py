"""The figure of a comparison: score over cost, or over a swept setting. matplotlib is loaded when one is made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from freeflow_core.evaluation.scores import DATA, TEACHER, TEACHER_1
from freeflow_core.files import replacing
from freeflow_core.tools.compare.table import Estimate, Row, Table, lower_is_better

COSTS, SWEEP = "comparison.png", "sweep.png"

# Okabe and Ito's colours, told apart by people with any colour vision; their yellow is too pale on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vP*X<>"
_SAME, _ASIDE = 1.02, 1.035
_LOG_FROM = 5.0
_MOST_TICKS = 12


def plot(table: Table, folder: Path) -> Path | None:
    """Draw the figure that the table has data for; None while there is nothing to show.

    Raises:
        OSError: the disk is full.
    """
    rows = [row for row in table.rows if 1 in row.scores]
    if not rows or table.score is None:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6) if table.setting else (10, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    if table.setting is not None:
        axes = figure.subplots()
        _draw_sweep(axes, table, rows)
        panels, path = [axes], folder / SWEEP
    else:
        panels = list(figure.subplots(1, 2, sharey=True))
        _draw_training(panels[0], table, rows)
        _draw_sampling(panels[1], table, rows)
        path = folder / COSTS
    for row, style in ((TEACHER, ":"), (DATA, "-.")):
        if (value := table.teacher_score(row)) is not None:
            for axes in panels:
                axes.axhline(value, color="0.4", linestyle=style, linewidth=1, label=table.title(row), zorder=1)
    _finish(figure, panels, table)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def _draw_training(axes: Any, table: Table, rows: Sequence[Row]) -> None:
    """One step's score over what training cost: forwards, or seconds where all had the same forwards."""
    costs = [row.training_forwards for row in rows]
    label = "training cost (network forwards)"
    known = [cost for cost in costs if cost is not None]
    if table.budget.startswith("forwards") or len(known) < len(rows) or max(known) < _SAME * min(known):
        costs, label = [row.training_seconds for row in rows], "training time (s)"
    for row, cost in zip(rows, costs, strict=True):
        if cost is not None:
            _points(axes, table, row.objective, [cost], [row.scores[1]], "none")
    shown = [cost for cost in costs if cost is not None and cost > 0]
    if shown and max(shown) > _LOG_FROM * min(shown):
        axes.set_xscale("log")
        _plain_numbers(axes.xaxis)
    axes.set_xlabel(label)
    axes.set_title("one step, by what training took", fontsize=10)
    axes.margins(x=0.15)


def _draw_sampling(axes: Any, table: Table, rows: Sequence[Row]) -> None:
    """The score over the student's evaluations a sample."""
    for number, row in enumerate(rows):
        aside = _ASIDE ** (number - (len(rows) - 1) / 2)  # so that error bars do not hide each other
        steps = sorted(row.scores)
        _points(axes, table, row.objective, [n * aside for n in steps], [row.scores[n] for n in steps], "-")
    if (value := table.teacher_score(TEACHER_1)) is not None and (_in_decades(table) or value < 2 * max(_means(table))):
        axes.plot([1], [value], marker="x", color="0.4", linestyle="none", label="teacher, 1 step", zorder=2)
    axes.set_xscale("log", base=2)
    axes.set_xticks(table.steps, [str(n) for n in table.steps])
    axes.minorticks_off()
    axes.set_xlabel("sampling cost (network evaluations per sample)")
    axes.set_title("one and several steps", fontsize=10)
    axes.margins(x=0.15)


def _draw_sweep(axes: Any, table: Table, rows: Sequence[Row]) -> None:
    """The score over the swept value; an objective that it does not concern is a flat line over the whole width."""
    values = {repr(row.value): row.value for row in rows if row.value is not None}
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values.values())
    places = {text: float(values[text]) if numeric else float(number) for number, text in enumerate(values)}
    for objective in dict.fromkeys(row.objective for row in rows):
        own = [row for row in rows if row.objective == objective]
        if own[0].value is not None:
            own.sort(key=lambda row: places[repr(row.value)])
            _points(axes, table, objective, [places[repr(r.value)] for r in own], [r.scores[1] for r in own], "-")
            continue
        estimate, colour = own[0].scores[1], _style(table, objective)["color"]
        axes.axhline(estimate.mean, color=colour, linestyle="--", linewidth=1.6, label=f"{objective} (not affected)")
        if estimate.deviation is not None:
            low, high = estimate.mean - estimate.deviation, estimate.mean + estimate.deviation
            axes.axhspan(low, high, color=colour, alpha=0.15, linewidth=0)
    if not numeric:
        axes.set_xticks(list(places.values()), [str(value) for value in values.values()])
    else:
        if min(places.values()) > 0 and max(places.values()) > _LOG_FROM**2 * min(places.values()):
            axes.set_xscale("log")
            axes.minorticks_off()
        if len(places) <= _MOST_TICKS:
            axes.set_xticks(list(places.values()), [f"{place:g}" for place in places.values()])
    axes.set_xlabel(table.setting)


def _points(axes: Any, table: Table, objective: str, x: Sequence[float], y: Sequence[Estimate], line: str) -> None:
    deviations = [estimate.deviation or 0.0 for estimate in y]
    axes.errorbar(
        x,
        [estimate.mean for estimate in y],
        yerr=deviations if any(deviations) else None,
        linestyle=line,
        capsize=3,
        markersize=6,
        linewidth=1.5,
        label=objective,
        zorder=3,
        **_style(table, objective),
    )


def _style(table: Table, objective: str) -> dict[str, str]:
    """Colour and marker go by the objective's place in the whole table, so that both panels agree."""
    number = list(dict.fromkeys(row.objective for row in table.rows)).index(objective)
    return {"color": _COLOURS[number % len(_COLOURS)], "marker": _MARKERS[number % len(_MARKERS)]}


def _finish(figure: Any, panels: Sequence[Any], table: Table) -> None:
    score = table.score or ""
    panels[0].set_ylabel(f"{score}, one step" if table.setting else score)
    if lower_is_better(score):
        panels[0].set_ylabel(f"{panels[0].get_ylabel()} (lower is better)")
    if _in_decades(table):
        panels[0].set_yscale("log")
        _plain_numbers(panels[0].yaxis)
    for axes in panels:
        axes.grid(alpha=0.3, which="both" if axes.get_yscale() == "log" else "major")
        axes.spines[["top", "right"]].set_visible(False)
    found = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    objectives = [label for row in table.rows for label in found if label.split(" ")[0] == row.objective]
    entries = {label: found[label] for label in (*objectives, *found)}
    columns = min(3 if len(panels) == 1 else 4, len(entries))
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=9
    )
    seeds = max(row.planned for row in table.rows)
    spread = f"; mean and standard deviation over {seeds} seeds" if seeds > 1 else ""
    figure.suptitle(f"{table.name}: budget {table.budget}{spread}", fontsize=10)


def _plain_numbers(axis: Any) -> None:
    """1, 2, 5, 10 along a logarithmic axis, rather than powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _in_decades(table: Table) -> bool:
    """Whether the scores, the teacher's own included, are better seen on a logarithmic axis."""
    own = [table.teacher_score(row) for row in table.teacher]
    found = [*_means(table), *(value for value in own if value is not None)]
    lows = [e.mean - (e.deviation or 0.0) for row in table.rows for e in row.scores.values()]
    return min(*found, *lows) > 0 and max(found) > _LOG_FROM * min(found)


def _means(table: Table) -> list[float]:
    return [estimate.mean for row in table.rows for estimate in row.scores.values()]
