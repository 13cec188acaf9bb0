"""Networks divided among processes train as in one process, to rounding; so do copies in each, with any derivative."""

import json
from pathlib import Path

import torch
from run_helpers import TINY, TINY_SIT, finish, processes

from freeflow_core import api
from freeflow_core.config import load_run_config
from freeflow_core.network_file import load_tensors

EXACT = ("runtime.precision=float64", "training.images=48", "training.optimizer.clip_norm=0.1", "student.width=15")
MIXTURE = {"name": "gaussian-mixture", "layout": "ring"}
FREEFLOW = {"name": "freeflow", "weight_power": 0.5}
PREDICTION = {"name": "freeflow-prediction"}
MEANFLOW = {"name": "meanflow", "instant_share": 0.5}
TRANSFORMER = {
    "teacher": TINY_SIT | {"depth": 2}, "student": {"name": "transformer"}, "codec": "states",
    "objective": {"name": "freeflow", "guidance_max": 2.0},
}  # fmt: skip


def base(objective, derivative, **changes):
    source = {"source": MIXTURE, "codec": "states"} if objective["name"] == "meanflow" else {}
    return TINY | source | {"objective": objective | {"derivative": derivative}} | changes


def transformer(**changes):
    return {name: TINY[name] for name in ("training", "evaluation", "runtime")} | TRANSFORMER | changes


def whole(folder):
    """All tensors of a run's newest checkpoint by name, however many processes wrote it."""
    newest = max(p for p in (folder / "checkpoints").iterdir() if p.name.startswith("images-"))
    files = {path.stem: load_tensors(path)[0] for path in newest.glob("*.safetensors") if path.stem != "random"}
    divided = json.loads((newest / "state.json").read_text())["divided"]
    if divided is not None:
        from freeflow_core.engine.sharding import read

        files = read(newest, divided, {})
    return {f"{file}/{name}": tensor for file, named in files.items() for name, tensor in named.items()}


def assert_equal(one, other, tolerance=1e-10):
    expected, found = whole(one), whole(other)
    assert expected.keys() == found.keys() != set()
    for name, tensor in expected.items():
        assert torch.allclose(tensor, found[name], rtol=tolerance, atol=tolerance), name


def launch(plan, number, folder):
    """The runs of ``plan`` (settings by name) by ``number`` processes; elements of the student each process held."""
    (folder / "plan.json").write_text(json.dumps(plan))
    script = Path(__file__).with_name("sharded_runs.py")
    out = finish(processes(number, script, folder / "plan.json", folder))
    held = [json.loads((folder / f"held-{rank}.json").read_text()) for rank in range(number)]
    return out, {name: [each[name] for each in held] for name in plan}


def alone(registry, manager, base, settings, output):
    config = load_run_config(registry, "distill", overrides=base, assignments=[*settings])
    return api.distill(config, output=output, resume=output.exists(), manager=manager).folder


def compare(registry, manager, folder, number, ways):
    """Runs by name: what they are, and how they are divided. Each against one process."""
    plan = {name: (base, [*settings, *EXACT]) for name, (base, settings) in ways.items()}
    _, held = launch(plan, number, folder)
    for name, (base, settings) in plan.items():
        settings = [s for s in settings if not s.startswith("runtime.sha")]
        assert_equal(alone(registry, manager, base, settings, folder / f"{name}-alone"), folder / name)
    return held


def test_two_processes(registry, manager, tmp_path):
    full = ["runtime.sharding=full"]
    held = compare(registry, manager, tmp_path, 2, {
        "freeflow": (base(FREEFLOW, "forward-mode"), full),
        "prediction": (base(PREDICTION, "central"), [*full, "training.accumulation=2"]),
        "meanflow": (base(MEANFLOW, "one-sided"), full),
        "meanflow-copies": (base(MEANFLOW, "forward-mode"), []),
    })  # fmt: skip
    copies = held["meanflow-copies"][0]
    assert held["meanflow-copies"] == [copies] * 2
    assert sum(held["freeflow"]) == copies
    assert max(held["freeflow"]) < 0.6 * copies
