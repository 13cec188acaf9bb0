"""The figure of a comparison: score over cost, or over a swept setting. matplotlib is loaded when one is made."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from freeflow_core.evaluation.scores import DATA, FLOOR, TEACHER, TEACHER_1
from freeflow_core.files import replacing
from freeflow_core.tools.compare.table import Estimate, Row, Table, lower_is_better

COSTS, SWEEP = "comparison.png", "sweep.png"

# Okabe and Ito's colours, told apart by people with any colour vision; their yellow is too pale on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vP*X<>hpd8H"
_LINES = ("-", "--", ":")
_MANY = 8
"""Objectives from which on a legend stands beside the panels, not below."""
_SAME, _LOG_FROM = 1.02, 5.0


def plot(table: Table, folder: Path) -> Path | None:
    """Draw the figure that the table has data for; None while there is nothing to show.

    Raises:
        OSError: the disk is full.
    """
    rows = [row for row in table.rows if 1 in row.scores]
    if not rows or table.score is None:
        return None
    from matplotlib.figure import Figure

    many = len({row.objective for row in rows}) > _MANY
    width, height = (7.2, 4.6) if table.setting else (10.0, 4.8)
    figure = Figure(figsize=(width + 2.4 * many, height + 0.6 * many), dpi=150, layout="constrained")
    if table.setting is not None:
        panels, path = [figure.subplots()], folder / SWEEP
        _draw_sweep(panels[0], table, rows)
    elif table.steps == (1,) and any(len(row.curve) > 1 for row in rows):
        panels, path = [figure.subplots()], folder / COSTS
        _draw_training(panels[0], table, rows)
    else:
        panels, path = list(figure.subplots(1, 2, sharey=True)), folder / COSTS
        _draw_training(panels[0], table, rows)
        _draw_sampling(panels[1], table, rows)
    for row, style in ((TEACHER, ":"), (DATA, "-."), (FLOOR, "--")):
        if (value := table.teacher_score(row)) is not None:
            for axes in panels:
                axes.axhline(value, color="0.4", linestyle=style, linewidth=1, label=table.title(row), zorder=1)
    panels[0].set_ylabel(f"{table.score} (lower is better)" if lower_is_better(table.score) else table.score)
    own = [table.teacher_score(row) for row in table.teacher]
    means = [e.mean for row in table.rows for e in (*row.scores.values(), *row.curve.values())]
    _logarithmic_from(panels[0].set_yscale, [*means, *(value for value in own if value is not None)])
    for axes in panels:
        axes.grid(alpha=0.3)
    found = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if many:
        figure.legend(found.values(), found.keys(), loc="outside right upper", frameon=False, fontsize=8)
    else:
        columns = min(3 if table.setting else 4, len(found))
        figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns, frameon=False)
    seeds = max(row.planned for row in table.rows)
    spread = f"; mean and standard deviation over {seeds} seeds" if seeds > 1 else ""
    figure.suptitle(f"{table.name}: budget {table.budget}{spread}", fontsize=10)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def _draw_training(axes: Any, table: Table, rows: Sequence[Row]) -> None:
    """One step's score over what training cost: as training went on, where runs were scored meanwhile, over what the
    budget counts; else at the end, over forwards, or seconds where all had the same forwards."""
    if any(len(row.curve) > 1 for row in rows):
        in_images = table.budget.startswith("images")
        for row in rows:
            x = [images * (1.0 if in_images else row.forwards_per_image or 1.0) for images in row.curve]
            found = list(row.curve.values())
            style = _style(table, row.objective)
            axes.plot(x, [e.mean for e in found], label=row.objective, markersize=4, zorder=3, **style)
            axes.fill_between(x, *zip(*map(_band, found), strict=True), color=style["color"], alpha=0.15, linewidth=0)
        axes.set_xlabel("images seen in training" if in_images else "training cost (network forwards)")
        axes.set_title("one step, as training goes on", fontsize=10)
        return
    costs = [row.training_forwards for row in rows]
    label = "training cost (network forwards)"
    known = [cost for cost in costs if cost is not None]
    if table.budget.startswith("forwards") or len(known) < len(rows) or max(known) < _SAME * min(known):
        costs, label = [row.training_seconds for row in rows], "training time (s)"
    for row, cost in zip(rows, costs, strict=True):
        if cost is not None:
            _points(axes, table, row.objective, [(cost, row)], line=False)
    _logarithmic_from(axes.set_xscale, [cost for cost in costs if cost is not None])
    axes.set_xlabel(label)
    axes.set_title("one step, by what training took", fontsize=10)


def _draw_sampling(axes: Any, table: Table, rows: Sequence[Row]) -> None:
    for row in rows:
        _points(axes, table, row.objective, [(n, row) for n in sorted(row.scores)], by_steps=True)
    if (value := table.teacher_score(TEACHER_1)) is not None:
        axes.plot([1], [value], marker="x", color="0.4", linestyle="none", label=table.title(TEACHER_1), zorder=2)
    axes.set_xscale("log", base=2)
    axes.set_xticks(table.steps, [str(n) for n in table.steps])
    axes.minorticks_off()
    axes.set_xlabel("sampling cost (network evaluations per sample)")
    axes.set_title("one and several steps", fontsize=10)


def _draw_sweep(axes: Any, table: Table, rows: Sequence[Row]) -> None:
    """The score over the swept value; an objective that it does not concern is a flat line over the whole width."""
    values = {repr(row.value): row.value for row in rows if row.value is not None}
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values.values())
    places = {text: float(values[text]) if numeric else float(number) for number, text in enumerate(values)}
    for objective in dict.fromkeys(row.objective for row in rows):
        own = [row for row in rows if row.objective == objective]
        if own[0].value is not None:
            points = sorted(((places[repr(row.value)], row) for row in own), key=lambda point: point[0])
            _points(axes, table, objective, points)
            continue
        estimate, colour = own[0].scores[1], _style(table, objective)["color"]
        axes.axhline(estimate.mean, color=colour, linestyle="--", linewidth=1.6, label=f"{objective} (not affected)")
        if estimate.deviation is not None:
            axes.axhspan(*_band(estimate), color=colour, alpha=0.15, linewidth=0)
    if numeric:
        _logarithmic_from(axes.set_xscale, list(places.values()), _LOG_FROM**2)
    else:
        axes.set_xticks(list(places.values()), [str(value) for value in values.values()])
    axes.set_xlabel(table.setting)


def _points(
    axes: Any,
    table: Table,
    objective: str,
    points: Sequence[tuple[float, Row]],
    *,
    line: bool = True,
    by_steps: bool = False,
) -> None:
    """Scores of rows at their places x: of one step, or, ``by_steps``, of x steps."""
    estimates = [row.scores[int(x) if by_steps else 1] for x, row in points]
    axes.errorbar(
        [x for x, _ in points],
        [estimate.mean for estimate in estimates],
        yerr=list(zip(*((e.mean - _band(e)[0], _band(e)[1] - e.mean) for e in estimates), strict=True)),
        capsize=3,
        label=objective,
        zorder=3,
        **_style(table, objective) | ({} if line else {"linestyle": "none"}),
    )


def _band(estimate: Estimate) -> tuple[float, float]:
    """One deviation to either side; below, by the same factor as above where a positive score would reach 0."""
    mean, deviation = estimate.mean, estimate.deviation or 0.0
    below = mean - deviation
    return (mean**2 / (mean + deviation) if mean > 0 >= below else below), mean + deviation


def _style(table: Table, objective: str) -> dict[str, str]:
    """Colour, marker and line go by the objective's place in the whole table, so that both panels agree."""
    number = list(dict.fromkeys(row.objective for row in table.rows)).index(objective)
    cycle, colour = divmod(number, len(_COLOURS))
    return {
        "color": _COLOURS[colour], "marker": _MARKERS[number % len(_MARKERS)], "linestyle": _LINES[cycle % len(_LINES)],
    }  # fmt: skip


def _logarithmic_from(set_scale: Any, values: Sequence[float], factor: float = _LOG_FROM) -> None:
    """A logarithmic axis where the values are positive and spread over more than ``factor``."""
    if values and min(values) > 0 and max(values) > factor * min(values):
        set_scale("log")
