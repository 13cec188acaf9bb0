"""FreeFlow's own settings on several teachers: prediction alone, and every balance of prediction and correction.

A job is (teacher, variant, images, seed). Jobs already in the output are not repeated, so that a run that was stopped
goes on. Settings are chosen on seeds 100 and up and reported on others.

python benchmarks/balance.py --teachers ring digits --variants "signal k=1" --seeds 100 101 --output balance.jsonl
python benchmarks/balance.py --table --output balance.jsonl
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

VECTOR_TRAINING = {
    "batch_size": 256,
    "optimizer": {"learning_rate": 2e-3, "beta1": 0.9, "beta2": 0.99, "warmup_images": 12800, "schedule": "cosine"},
    "ema": {"halflife_images": 12800, "rampup_ratio": 0.1},
}
VECTOR_EVALUATION = {
    "num_samples": 4096,
    "batch_size": 512,
    "few_steps": [],
    "evaluators": [{"name": "energy-distance", "max_samples": 4096}],
}


def vectors(teacher: dict[str, Any], width: int, guidance: float) -> dict[str, Any]:
    """A run on a Gaussian mixture, whose velocity is exact."""
    return {
        "teacher": {"name": "gaussian-mixture", **teacher},
        "student": {"name": "mlp", "width": width, "depth": 3},
        "source": "prior",
        "reference": {"name": "gaussian-mixture", **teacher, "held_out": 4096},
        "training": VECTOR_TRAINING,
        "evaluation": {**VECTOR_EVALUATION, "guidance_weight": guidance},
    }


def scattered(dimension: int, modes: int, classes: int) -> dict[str, Any]:
    """Modes at random places of ``dimension`` dimensions, two to a class, with deviations of their own."""
    generator = np.random.default_rng(0)
    means = generator.standard_normal((modes, dimension))
    return {
        "layout": "custom",
        "sample_shape": [dimension],
        "means": means.round(3).tolist(),
        "stds": generator.uniform(0.2, 0.6, modes).round(3).tolist(),
        "labels": [mode % classes for mode in range(modes)],
    }


RING = {"layout": "ring", "num_modes": 8, "std": 0.1}
# (preset or None, overrides, guidance, short and long budgets in images)
TEACHERS: dict[str, tuple[str | None, dict[str, Any], float, tuple[int, int]]] = {
    "ring": (None, vectors(RING, 128, 1.0), 1.0, (204_800, 1_228_800)),
    "ring-guided": (None, vectors({**RING, "num_classes": 4}, 128, 2.0), 2.0, (204_800, 1_228_800)),
    "mixture-64": (None, vectors(scattered(64, 16, 8), 192, 1.0), 1.0, (204_800, 819_200)),
    "mixture-64-guided": (None, vectors(scattered(64, 16, 8), 192, 2.0), 2.0, (204_800, 819_200)),
    "digits": ("digits", {}, 1.0, (28_800, 115_200)),
    "digits-guided": ("digits-guided", {}, 2.5, (28_800, 115_200)),
    "mnist": ("mnist", {}, 1.25, (28_800, 115_200)),
    "mnist-guided": ("mnist-guided", {}, 1.5, (28_800, 115_200)),
}
POWERS = (0.0, 0.5, 1.0)
VARIANTS: dict[str, dict[str, Any]] = {
    **{f"prediction k={k:g}": {"name": "freeflow-prediction", "weight_power": k} for k in POWERS},
    **{
        f"{balance} k={k:g}": {"name": "freeflow", "weight_power": k, "balance": balance}
        for balance, k in itertools.product(("raw", "weighted", "signal"), POWERS)
    },
    **{
        f"{balance} k={k:g} x{strength:g}": {
            "name": "freeflow",
            "weight_power": k,
            "balance": balance,
            "balance_strength": strength,
        }
        for balance, k, strength in itertools.product(("raw", "weighted", "signal"), (0.5, 1.0), (0.3, 3.0))
    },
}
# One setting changed at a time, at k = 1 for students with the teacher's weights and 0.5 for those that start anew.
FROM_NOTHING = 0.5
ONE_CHANGED: dict[str, dict[str, Any]] = {
    "as it stands": {},
    "strength 0.3": {"balance_strength": 0.3},
    "strength 3": {"balance_strength": 3.0},
    "share 0.125": {"correction_share": 0.125},
    "share 0.5": {"correction_share": 0.5},
    "fake velocity's rate halved": {"fake_rate": 0.5},
    "fake velocity's rate doubled": {"fake_rate": 2.0},
    "fake velocity's rate constant": {"fake_schedule": "constant"},
    "2 updates of the fake velocity": {"name": "freeflow-in-turns", "fake_velocity_updates": 2},
    "4 updates of the fake velocity": {"name": "freeflow-in-turns", "fake_velocity_updates": 4},
}
VARIANTS |= {name: {"name": "freeflow", "weight_power": None, **changed} for name, changed in ONE_CHANGED.items()}
# Is it only more guidance? Prediction alone learns more than its teacher is sampled with, and is scored at what it
# learnt.
VARIANTS |= {
    f"prediction k=0.5 guided {weight:g}": {"name": "freeflow-prediction", "weight_power": 0.5, "guided": weight}
    for weight in (1.5, 1.75, 2.0)
}
COMMON = ("guidance_min", "guidance_max", "guidance_interval", "duration", "derivative")
CORRECTION = (
    *("correction_guidance_scale", "correction_guidance_interval", "correction_guidance_profile"),
    "fake_velocity_optimizer",
)


def settings(registry: Any, teacher: str, variant: dict[str, Any], images: int, seed: int, extra: list[str]) -> Any:
    """The configuration of one job."""
    from freeflow_core.config import load_run_config

    preset, overrides, guidance, _ = TEACHERS[teacher]
    variant = dict(variant)
    learnt = variant.pop("guided", guidance)
    corrects = variant["name"] != "freeflow-prediction"
    kept: dict[str, Any] = {"derivative": "one-sided"}
    if corrects:
        kept["balance_strength"] = 1.0  # unless the variant says otherwise, whatever the preset has
    training = overrides.get("training", {})
    if preset is not None:
        base = load_run_config(registry, "distill", preset=preset)
        training = base.training.model_dump(mode="json")
        options = base.objective.model_dump(mode="json")
        names = COMMON + (CORRECTION if corrects else ())
        kept |= {name: options[name] for name in names if options.get(name) is not None}
        if corrects:  # the same share of a run of another length
            kept["correction_warmup_images"] = options["correction_warmup_images"] * images // base.training.images
    if variant["weight_power"] is None:
        variant["weight_power"] = 1.0 if preset is not None else FROM_NOTHING
    images *= variant.get("fake_velocity_updates", 1)
    rate, schedule = variant.pop("fake_rate", None), variant.pop("fake_schedule", None)
    if rate is not None or schedule is not None:
        optimizer = kept.get("fake_velocity_optimizer") or training["optimizer"]
        faster = {"learning_rate": (rate or 1.0) * optimizer["learning_rate"]}
        kept["fake_velocity_optimizer"] = {**optimizer, **faster, **({"schedule": schedule} if schedule else {})}
    kept |= {"guidance_min": learnt, "guidance_max": learnt}
    if guidance == 1:
        kept.pop("guidance_interval", None)
    assignments = [f"seed={seed}", f"training.images={images}", "trackers=[]", "runtime.threads=1", *extra]
    if preset is not None:
        assignments.append("evaluation.few_steps=[]")
    changes = {**overrides, "objective": {**kept, **variant}}
    return load_run_config(registry, "distill", preset=preset, overrides=changes, assignments=assignments)


def train_and_score(config: Any, manager: Any, shared: Any, folder: Path) -> dict[str, float]:
    """Train a run in ``folder`` and score its one-step student; ``shared`` holds the teacher's samples."""
    from freeflow_core.engine.build import Builder
    from freeflow_core.engine.run import Run
    from freeflow_core.engine.state import STUDENT
    from freeflow_core.evaluation.scores import Evaluation
    from freeflow_core.evaluation.scoring import Scoring
    from freeflow_core.interfaces import EvaluationContext
    from freeflow_core.plugin import Registry

    quiet = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"enabled": False})})
    began = time.perf_counter()
    trained = Run(quiet, "distill", manager, output=folder, resume=False, scorer=Scoring)
    trained.execute()
    seconds = time.perf_counter() - began
    device, parts = trained.accelerator.device, trained.components
    student: Any = trained.state.roles[STUDENT].ema
    more = config.objective.model_dump()["guidance_max"] - config.evaluation.guidance_weight
    if more:
        student.register_forward_pre_hook(lambda _, given: (*given[:4], given[4] + more))
    context = EvaluationContext(device, parts.codec, parts.teacher, student, parts.reference)
    builder = Builder(Registry(manager), device, config.seed)
    return {"seconds": seconds, **Evaluation(config, builder, context, shared=shared).student_row()}


def run(jobs: list[tuple[str, str, int, int]], output: Path, extra: list[str]) -> None:
    """Train and score ``jobs`` one after another; append a JSON line for each to ``output``."""
    from freeflow_core.evaluation.scores import SharedRows
    from freeflow_core.plugin import Manager, Registry

    manager = Manager.load([Path(__file__).with_name("fake_velocity_turns.py")])
    registry = Registry(manager)
    shared = {teacher: SharedRows() for teacher in TEACHERS}
    for teacher, variant, images, seed in jobs:
        config = settings(registry, teacher, VARIANTS[variant], images, seed, extra)
        with tempfile.TemporaryDirectory() as folder:
            scores = train_and_score(config, manager, shared[teacher], Path(folder) / "run")
            journal = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
        logged = {
            name: [round(line[name], 5) for line in journal if name in line][:: max(1, len(journal) // 8)]
            for name in ("student/correction_signal", "student/correction_share", "student/prediction_residual")
        }
        line = {"teacher": teacher, "variant": variant, "images": images, "seed": seed, "extra": extra}
        with output.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**line, **scores, "logged": logged}) + "\n")


def table(lines: list[dict[str, Any]]) -> str:
    """Every score's mean and deviation over seeds, by teacher and budget, as Markdown."""
    text = []
    for teacher, images in dict.fromkeys((line["teacher"], line["images"]) for line in lines):
        here = [line for line in lines if (line["teacher"], line["images"]) == (teacher, images)]
        scores = [name for name in here[0] if name.startswith(("fd_", "energy_", "spread_ratio", "accuracy"))]
        text += [f"\n{teacher}, {images:,} images\n", "| variant | " + " | ".join(scores) + " | seeds |"]
        text.append("|---" * (len(scores) + 2) + "|")
        for name in dict.fromkeys((line["variant"], *line["extra"]) for line in here):
            found = [line for line in here if (line["variant"], *line["extra"]) == name]
            cells = []
            for score in scores:
                values = [line[score] for line in found]
                spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.4g}{spread}")
            text.append(f"| {', '.join(name)} | " + " | ".join(cells) + f" | {len(found)} |")
    return "\n".join(text)


def _budget(text: str) -> str | int:
    return text if text in ("short", "long") else int(text)


def main() -> None:
    """Run what is asked and not yet done, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", nargs="*", default=list(TEACHERS), choices=list(TEACHERS))
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument(
        "--budgets", nargs="*", default=["short"], type=_budget, help="short, long or a number of images"
    )
    parser.add_argument("--seeds", nargs="*", type=int, default=[100])
    parser.add_argument("--set", action="append", default=[], dest="extra", help="a.b=c, for every job")
    parser.add_argument("--output", type=Path, default=Path("balance.jsonl"))
    parser.add_argument("--table", action="store_true", help="print what is there and run nothing")
    options = parser.parse_args()
    text = options.output.read_text().splitlines() if options.output.exists() else []
    keys = ("teacher", "variant", "images", "seed")
    done = [([line[key] for key in keys], line["extra"]) for line in map(json.loads, text)]
    wanted = itertools.product(options.seeds, options.budgets, options.variants, options.teachers)
    jobs = [
        (teacher, variant, TEACHERS[teacher][3][budget == "long"] if isinstance(budget, str) else budget, seed)
        for seed, budget, variant, teacher in wanted
        if "guided" not in VARIANTS[variant] or TEACHERS[teacher][2] > 1  # unguided teachers have no more to give
    ]
    if not options.table:
        run([job for job in jobs if (list(job), options.extra) not in done], options.output, options.extra)
    print(table([json.loads(line) for line in options.output.read_text().splitlines()]))


if __name__ == "__main__":
    main()
