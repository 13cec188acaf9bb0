"""``freeflow search``: samples by best-of-N, on disk, and what they gain over plain sampling."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from freeflow_core.config import RunConfig
from freeflow_core.evaluation.pictures import comparison_image, save_image
from freeflow_core.tools.search.comparison import Search, SearchPlan, SearchRow
from freeflow_core.tools.search.plot import plot_rows
from freeflow_core.types import Condition

_PICTURE_COLUMNS = 10
OnSearched = Callable[[int, int], None]
"""``on_progress(done, total)`` samples."""


@dataclass(frozen=True)
class SearchResult:
    """Samples on disk, evaluations per sample, and the comparison's rows by name (none when it was not asked for)."""

    folder: Path
    files: Mapping[str, Path]
    evaluations: float
    rows: Mapping[str, SearchRow] = field(default_factory=dict)


def write_samples(
    search: Search, plan: SearchPlan, output: Path, num: int, batch_size: int, seed: int, on_progress: OnSearched
) -> SearchResult:
    """``samples.npz`` (arr_0 uint8 NHWC, arr_1 labels), ``search.json`` and a picture beside unsearched samples."""
    stream = search.stream(seed)
    images: list[Tensor] = []
    labels: list[Tensor] = []
    evaluations = 0.0
    for batch in stream.batches(0, num, batch_size):
        images.append(batch.images.cpu())
        if isinstance(batch.condition, Tensor):
            labels.append(batch.condition.cpu())
        evaluations += batch.num_evaluations * len(batch.index)
        on_progress(int(batch.index[-1]) + 1, num)
    drawn = torch.cat(images)
    output.mkdir(parents=True, exist_ok=True)
    files = {"samples": output / "samples.npz", "search": output / "search.json"}
    arrays = {"arr_0": (drawn.permute(0, 2, 3, 1) if drawn.ndim == 4 else drawn).numpy()}
    if labels:
        arrays["arr_1"] = torch.cat(labels).numpy()
    np.savez(files["samples"], **arrays)  # type: ignore[arg-type]  # the stub has no name for the arrays
    index = torch.arange(min(num, _PICTURE_COLUMNS))
    chosen, scores, _ = stream.screen(index, batch_size)
    described = {
        "candidates": plan.candidates,
        "steps": plan.steps,
        "guidance_weight": plan.guidance_weight,
        "seed": seed,
        "num": num,
        "evaluations_per_sample": evaluations / num,
        "first_samples": [
            {"sample": i, "noise": int(chosen[i]), "scores": scores[i].tolist()} for i in range(len(index))
        ],
    }
    files["search"].write_text(json.dumps(described, indent=1) + "\n", "utf-8")
    if drawn.ndim == 4:
        unsearched = search.plain(seed).batch(index, index * plan.candidates)
        rows = [("first noise", unsearched.images.cpu()), (f"best of {plan.candidates}", drawn[: len(index)])]
        files["picture"] = output / "search.png"
        save_image(comparison_image(rows, _headers(unsearched.condition, len(index))), files["picture"])
    return SearchResult(output, files, evaluations / num)


def write_rows(rows: Mapping[str, SearchRow], config: RunConfig, output: Path) -> dict[str, Path]:
    """The comparison as JSON, Markdown and, where a distance was measured, a picture."""
    files = {"comparison": output / "comparison.json", "table": output / "comparison.md"}
    values = {name: {"steps": row.steps, **{k: list(v) for k, v in row.scores.items()}} for name, row in rows.items()}
    files["comparison"].write_text(json.dumps(values, indent=1) + "\n", "utf-8")
    columns = list(dict.fromkeys(key for row in rows.values() for key in row.scores))
    lines = ["| | steps | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for name, row in rows.items():
        cells = [_cell(row.scores[key]) if key in row.scores else "-" for key in columns]
        lines.append(f"| {name} | {row.steps} | " + " | ".join(cells) + " |")
    lines += ["", f"{config.evaluation.num_samples} samples a row; mean and deviation over seeds."]
    files["table"].write_text("\n".join(lines) + "\n", "utf-8")
    if picture := plot_rows(rows, output / "comparison.png"):
        files["plot"] = picture
    return files


def _cell(value: tuple[float, float]) -> str:
    return f"{value[0]:.4g}" + (f" ± {value[1]:.2g}" if value[1] else "")


def _headers(condition: Condition, num: int) -> list[str]:
    if isinstance(condition, Tensor) and condition.ndim == 1:
        return [str(label) for label in condition.tolist()]
    return [str(i) for i in range(num)]
