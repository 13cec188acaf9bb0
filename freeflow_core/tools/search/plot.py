"""Distance over network evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from freeflow_core.tools.search.comparison import SearchRow

_DISTANCES = ("fid", "fid_data", "fd_data", "kid_data", "kd_data", "energy_data")


def plot_rows(rows: Mapping[str, SearchRow], path: Path) -> Path | None:
    """One point a row, with its deviation over seeds; None when no row has a distance to real images."""
    metric = next((m for m in _DISTANCES if all(m in row.scores for row in rows.values())), None)
    if metric is None:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, row in rows.items():
        evaluations, (value, deviation) = row.scores["evaluations"][0], row.scores[metric]
        marker = "*" if name == "search" else "o"
        axes.errorbar([evaluations], [value], yerr=[deviation], fmt=marker, capsize=3, label=name, markersize=9)
    axes.set_xlabel("network evaluations per sample")
    axes.set_ylabel(f"{metric} (lower is better)")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path)
    return path
