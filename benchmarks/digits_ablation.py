"""The table of docs/reference/digits.md: what each part of the objective does, on digits with guidance 2.5.

Every variant trains on the same number of images with the same optimizer and evaluation; only the objective differs.
The many-step teacher is sampled once per process and shared.

python benchmarks/digits_ablation.py --seeds 3 --output ablation.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from balance import train_and_score

PRESET = "digits-guided"
WEIGHTED = ("objective.balance=weighted", "objective.balance_strength=1")
VARIANTS: dict[str, tuple[str, ...]] = {
    "both: k = 1, r logit-normal 0.8, c = 0.34, balance signal, strength 1.5 (preset)": (),
    "the same, strength 1": ("objective.balance_strength=1",),
    "both, balance weighted, as all rows below": WEIGHTED,
    "prediction alone, k = 1": ("objective=freeflow-prediction",),
    "prediction alone, k = 0.5": ("objective=freeflow-prediction", "objective.weight_power=0.5"),
    "prediction alone, k = 0": ("objective=freeflow-prediction", "objective.weight_power=0"),
    "correction alone": ("objective=freeflow-correction", "objective.balance_strength=1"),
    "both, k = 0": (*WEIGHTED, "objective.weight_power=0"),
    "both, k = 0.5": (*WEIGHTED, "objective.weight_power=0.5"),
    "both, r uniform in [0, 0.6]": (*WEIGHTED, "objective.r_distribution=uniform", "objective.r_high=0.6"),
    "both, r uniform in [0, 1]": (*WEIGHTED, "objective.r_distribution=uniform"),
    "both, corrector guided fully (c = 1), r in [0, 1]": (*WEIGHTED, "objective.correction_guidance_scale=1"),
    "both, corrector guided fully, r in [0.6, 1]": (
        *WEIGHTED,
        "objective.correction_guidance_scale=1",
        "objective.correction_guidance_interval=[0.6, 1]",
    ),
    "both, corrector guided fully, r in [0.8, 1]": (
        *WEIGHTED,
        "objective.correction_guidance_scale=1",
        "objective.correction_guidance_interval=[0.8, 1]",
    ),
    "both, corrector unguided (c = 0)": (*WEIGHTED, "objective.correction_guidance_scale=0"),
}
SCORES = ("fd_teacher", "fd_data", "spread_ratio", "accuracy", "fidelity_mse")


def run_variants(jobs: list[tuple[str, int]], output: Path, settings: list[str]) -> None:
    """Train and score ``jobs`` one after another in this process; append a JSON line for each to ``output``."""
    from freeflow_core.config import load_run_config
    from freeflow_core.evaluation.scores import SharedRows
    from freeflow_core.plugin import Manager, Registry

    manager = Manager.load()
    registry = Registry(manager)
    base = load_run_config(registry, "distill", preset=PRESET, assignments=settings)
    shared = SharedRows()
    for name, seed in jobs:
        changes: dict[str, object] = {}
        assignments = [f"seed={seed}", "trackers=[]", "runtime.threads=1", *settings]
        renamed = next((t.split("=")[1] for t in VARIANTS[name] if t.startswith("objective=")), None)
        if renamed:  # another objective: keep the preset's options that it has
            known = registry.component("objective", renamed).load_config_class().model_fields
            kept = {k: v for k, v in base.objective.model_dump(mode="json").items() if k in known and k != "name"}
            changes = {"objective": {"name": renamed, **kept}}
        assignments += [text for text in VARIANTS[name] if text != f"objective={renamed}"]
        config = load_run_config(registry, "distill", preset=PRESET, overrides=changes, assignments=assignments)
        with tempfile.TemporaryDirectory() as folder:
            scores = train_and_score(config, manager, shared, Path(folder) / "run")
        line = {"variant": name, "seed": seed, "images": config.training.images, **scores}
        with output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def table(lines: list[dict[str, float]]) -> str:
    """Mean and spread (standard deviation over seeds) of every variant, as Markdown."""
    rows = ["| variant | " + " | ".join(SCORES) + " | seeds |", "|---" * (len(SCORES) + 2) + "|"]
    for name in VARIANTS:
        found = [line for line in lines if line["variant"] == name]
        if not found:
            continue
        cells = []
        for score in SCORES:
            values = [line[score] for line in found if score in line]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}" if values else "-")
        rows.append(f"| {name} | " + " | ".join(cells) + f" | {len(found)} |")
    return "\n".join(rows)


K = {
    "prediction alone": {0: "prediction alone, k = 0", 0.5: "prediction alone, k = 0.5", 1: "prediction alone, k = 1"},
    "both": {0: "both, k = 0", 0.5: "both, k = 0.5", 1: "both, balance weighted, as all rows below"},
}
LEVELS = {
    "uniform\n[0, 0.6]": "both, r uniform in [0, 0.6]",
    "uniform\n[0, 1]": "both, r uniform in [0, 1]",
    "logit-normal\nat 0.8": "both, balance weighted, as all rows below",
}


def draw(lines: list[dict[str, float]], path: Path) -> None:
    """The figure of k and of where r is drawn: mean and standard deviation over seeds of ``fd_teacher``."""
    from matplotlib.figure import Figure

    def estimates(names: Iterable[str]) -> tuple[list[float], list[float]]:
        found = [[line["fd_teacher"] for line in lines if line["variant"] == name] for name in names]
        return [statistics.mean(part) for part in found], [statistics.stdev(part) for part in found]

    figure = Figure(figsize=(7.2, 2.8), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for (label, names), colour in zip(K.items(), ("#D55E00", "#0072B2"), strict=True):
        means, deviations = estimates(names.values())
        left.errorbar(list(names), means, yerr=deviations, label=label, color=colour, marker="o", capsize=3)
    left.set(xlabel="k", ylabel="distance to the teacher's", xticks=list(K["both"]), ylim=(0, 0.8))
    left.legend(frameon=False)
    means, deviations = estimates(LEVELS.values())
    right.bar(list(LEVELS), means, yerr=deviations, color="#0072B2", capsize=3, width=0.5)
    right.set_xlabel("where r is drawn (both)")
    figure.savefig(path)


def main() -> None:
    """Share the jobs out over processes, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 2)))
    parser.add_argument("--output", type=Path, default=Path("ablation.jsonl"))
    parser.add_argument("--set", action="append", default=[], dest="settings", help="a.b=c, for every variant")
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), help="variants, by name")
    parser.add_argument("--figure", type=Path, help="draw k and r here")
    parser.add_argument("--part", type=int, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    done = (
        {
            (line["variant"], line["seed"])
            for line in (json.loads(text) for text in options.output.read_text().splitlines())
        }
        if options.output.exists()
        else set()
    )
    jobs = [(name, seed) for seed in range(options.seeds) for name in options.only if (name, seed) not in done]
    if options.part is not None:
        run_variants(jobs[options.part :: options.processes], options.output, options.settings)
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen([sys.executable, *sys.argv, "--part", str(part)], env=environment)
        for part in range(options.processes)
    ]
    if any(worker.wait() for worker in workers):
        raise SystemExit("a worker failed; the finished variants are kept, run the command again for the rest")
    lines = [json.loads(text) for text in options.output.read_text().splitlines()]
    print(table(lines))
    if options.figure:
        draw(lines, options.figure)


if __name__ == "__main__":
    main()
