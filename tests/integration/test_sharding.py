"""Networks divided among processes train as in one process, to rounding; so do copies in each, with any derivative."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from run_helpers import TINY, TINY_SIT, finish, freeflow, processes

from freeflow_core import api
from freeflow_core.config import load_run_config
from freeflow_core.engine.process import processes_per_copy
from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.network_file import load_tensors

EXACT = ("runtime.precision=float64", "training.images=48", "training.optimizer.clip_norm=0.1")
ODD = (*EXACT, "student.width=15")
FULL, HYBRID = ("runtime.sharding=full",), ("runtime.sharding=hybrid", "runtime.shard_size=2")
COMPILED = ("runtime.compile=true", "runtime.compile_backend=eager")
BF16 = ("training.optimizer.moments=bf16",)
BACKGROUND = ("checkpointing.asynchronous=true", "checkpointing.every_images=16")
SCORED = (
    "evaluation.enabled=true", "evaluation.evaluators=[energy-distance]", "evaluation.num_samples=64",
    "evaluation.batch_size=8", "evaluation.reference_steps=4", "evaluation.cache=false",
)  # fmt: skip
MIXTURE = {"name": "gaussian-mixture", "layout": "ring"}
OBJECTIVES = {
    "freeflow": {"name": "freeflow", "weight_power": 0.5},
    "prediction": {"name": "freeflow-prediction"},
    "meanflow": {"name": "meanflow", "instant_share": 0.5},
}
TRANSFORMER = {
    "teacher": TINY_SIT | {"depth": 2}, "student": {"name": "transformer"}, "codec": "states",
    "objective": {"name": "freeflow", "guidance_max": 2.0}, "samples": {"per_class": 1},
}  # fmt: skip


def base(objective, derivative, **changes):
    data = {"source": MIXTURE, "codec": "states"} if objective == "meanflow" else {}
    return TINY | data | {"objective": OBJECTIVES[objective] | {"derivative": derivative}} | changes


def transformer(**changes):
    return {name: TINY[name] for name in ("training", "evaluation", "runtime", "logging")} | TRANSFORMER | changes


def newest(folder):
    return max(p for p in (folder / "checkpoints").iterdir() if p.name.startswith("images-"))


def whole(folder):
    """All tensors of a run's newest checkpoint by name, however many processes wrote it."""
    path = newest(folder)
    divided = json.loads((path / "state.json").read_text())["divided"]
    if divided is None:
        files = {file.stem: load_tensors(file)[0] for file in path.glob("*.safetensors") if file.stem != "random"}
    else:
        from freeflow_core.engine.sharding import read

        files = read(path, divided, {})
    return {f"{file}/{name}": tensor for file, named in files.items() for name, tensor in named.items()}


def assert_equal(one, other):
    expected, found = whole(one), whole(other)
    assert expected.keys() == found.keys() != set()
    for name, tensor in expected.items():
        assert torch.allclose(tensor, found[name], rtol=1e-9, atol=1e-10), name


def launch(plan, number, folder):
    """The runs of ``plan`` (settings by name) by ``number`` processes; the student's elements and all bytes that each
    process held."""
    (folder / "plan.json").write_text(json.dumps(plan))
    script = Path(__file__).with_name("sharded_runs.py")
    finish(processes(number, script, folder / "plan.json", folder), timeout=900)
    held = [json.loads((folder / f"held-{rank}.json").read_text()) for rank in range(number)]
    return {name: [each[name] for each in held] for name in plan}


@pytest.fixture
def alone(registry, manager):
    """Runs by one process."""

    def run(base, settings, output):
        own = ("runtime.shar", "runtime.comp", "training.accum")
        settings = [setting for setting in settings if not setting.startswith(own)]
        settings = [f"name={output.name}", *settings]
        config = load_run_config(registry, "distill", overrides=base, assignments=settings)
        return api.distill(config, output=output, resume=output.exists(), manager=manager).folder

    return run


def scores(folder):
    rows = json.loads((folder / "scores.json").read_text())
    return {row: {k: v for k, v in found.items() if k != "ms_per_image"} for row, found in rows.items()}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Runs by two processes, in one launch, and what each process held."""
    folder = tmp_path_factory.mktemp("two")
    plan = {
        "freeflow": (base("freeflow", "forward-mode"), (*ODD, *FULL, *SCORED)),
        "prediction": (base("prediction", "central"), (*ODD, *FULL, "training.accumulation=2")),
        "meanflow": (base("meanflow", "one-sided"), (*ODD, *FULL)),
        "replicas": (base("meanflow", "one-sided"), (*ODD, "runtime.sharding=hybrid", "runtime.shard_size=1")),
        "split": (base("freeflow", "central"), (*ODD, *FULL, "training.accumulation=2")),
        "split-copies": (base("freeflow", "central"), (*ODD, "training.accumulation=2")),
        "moments": (base("freeflow", "one-sided"), (*ODD, *FULL, *BF16)),
        "copies": (base("meanflow", "forward-mode"), (*ODD, "checkpointing.asynchronous=true")),
        "packed": (base("freeflow", "one-sided"), (*ODD, *FULL, *BF16, "training.stop_at_images=32")),
        "stopped": (transformer(), (*EXACT, *FULL, "training.stop_at_images=32", *BACKGROUND)),
        "compiled": (transformer(), (*EXACT, *FULL, *COMPILED, "objective.derivative=forward-mode")),
        "compiled-copies": (transformer(), (*EXACT, *COMPILED)),
    }
    return plan, folder, launch(plan, 2, folder)


@pytest.mark.parametrize(
    "name",
    [
        "freeflow",
        "prediction",
        "split",
        "split-copies",
        "moments",
        "meanflow",
        "copies",
        "compiled",
        "compiled-copies",
        "replicas",
    ],
)
def test_two_processes_equal_one(two, alone, tmp_path, name):
    plan, folder, _ = two
    assert_equal(alone(*plan[name], tmp_path / name), folder / name)


def test_each_process_holds_its_share_as_planned(two, registry, manager):
    plan, _, held = two
    (elements, _), other = held["copies"]
    assert other[0] == elements
    assert sum(student for student, _ in held["freeflow"]) == elements
    base, settings = plan["stopped"]
    planned = []
    for way in (settings, [setting for setting in settings if setting not in FULL]):
        config = load_run_config(registry, "distill", overrides=base, assignments=way)
        found = api.plan(config, num_processes=2, manager=manager)
        planned.append(sum(network.memory - network.gradients for network in found.networks))
    assert held["stopped"][0][1] == pytest.approx(planned[0], rel=0.05)
    assert planned[0] < 0.6 * planned[1]


def test_a_divided_student_is_scored_and_saved_whole(two, tmp_path):
    _, folder, _ = two
    freeflow("evaluate", "--run", folder / "freeflow", "--output", tmp_path / "alone")
    found, expected = scores(folder / "freeflow"), scores(tmp_path / "alone")
    assert found.keys() == expected.keys() > {"student", "teacher"}
    for row, values in expected.items():  # of weights that a file holds in float32
        assert found[row] == pytest.approx(values, rel=1e-6), row


@pytest.mark.parametrize(("name", "checkpoints"), [("stopped", 2), ("packed", 1)])
def test_one_process_goes_on_from_a_divided_checkpoint(two, alone, tmp_path, name, checkpoints):
    plan, folder, _ = two
    base, settings = plan[name]
    shutil.copytree(folder / name, tmp_path / name)
    assert len(list((tmp_path / name / "checkpoints").iterdir())) == checkpoints
    settings = [setting for setting in settings if "stop_at" not in setting]
    assert_equal(alone(base, settings, tmp_path / "alone"), alone(base, settings, tmp_path / name))


def test_a_damaged_part_is_named_and_the_one_before_is_used(two, alone, tmp_path, caplog):
    plan, folder, _ = two
    base, settings = plan["stopped"]
    shutil.copytree(folder / "stopped", tmp_path / "stopped")
    part = sorted(newest(tmp_path / "stopped").glob("shard-00002-*"))[0]
    content = bytearray(part.read_bytes())
    content[-3] ^= 1
    part.write_bytes(content)
    with pytest.raises(CheckpointError, match=part.name):
        alone(base, [*settings, "checkpointing.fall_back=false"], tmp_path / "stopped")
    with caplog.at_level(logging.WARNING, "freeflow"):
        alone(base, settings, tmp_path / "stopped")
    assert part.name in caplog.text
    assert_equal(folder / "stopped", tmp_path / "stopped")


@pytest.mark.long
def test_four_processes(two, alone, tmp_path):
    _, folder, _ = two
    shutil.copytree(folder / "stopped", tmp_path / "stopped")
    start, settings = transformer(), [*EXACT, "training.stop_at_images=16"]
    alone(start, settings, tmp_path / "plain")
    through = alone(start, EXACT, tmp_path / "alone")
    held = launch({
        "stopped": (start, [*EXACT, *HYBRID]),
        "plain": (start, [*EXACT, *FULL, "runtime.activation_checkpointing=false"]),
        "meanflow": (base("meanflow", "central"), [*ODD, *HYBRID]),
    }, 4, tmp_path)  # fmt: skip
    assert_equal(through, tmp_path / "stopped")
    assert_equal(through, tmp_path / "plain")
    assert_equal(alone(base("meanflow", "central"), ODD, tmp_path / "m"), tmp_path / "meanflow")
    assert sum(student for student, _ in held["stopped"]) == 2 * sum(student for student, _ in held["plain"])


def test_processes_that_cannot_be_grouped_are_refused(registry):
    def runtime(*settings):
        return load_run_config(registry, "distill", overrides=TINY, assignments=settings).runtime

    assert processes_per_copy(runtime(), 4) == 1
    assert processes_per_copy(runtime(*FULL), 4) == 4
    assert processes_per_copy(runtime(*HYBRID), 4) == 2
    assert processes_per_copy(runtime(*FULL), 1) == processes_per_copy(runtime(*HYBRID), 1) == 1
    with pytest.raises(ConfigError, match="3"):
        processes_per_copy(runtime(*HYBRID), 3)
    with pytest.raises(ConfigError, match="shard_size"):
        runtime("runtime.shard_size=2")


def test_one_process_says_that_it_divides_nothing(registry, manager, tmp_path, caplog):
    config = load_run_config(registry, "distill", overrides=TINY, assignments=[*FULL, "training.images=16"])
    with caplog.at_level(logging.WARNING, "freeflow"):
        api.distill(config, output=tmp_path / "run", manager=manager)
    assert "runtime.sharding=full" in caplog.text


@pytest.mark.long
@pytest.mark.parametrize(("number", "ways"), [(2, FULL), (4, FULL), (4, HYBRID), (4, ()), (2, ())])
def test_every_objective_derivative_and_way(alone, tmp_path, number, ways):
    plan = {
        f"{objective}-{derivative}": (base(objective, derivative), [*ODD, *ways])
        for objective in OBJECTIVES
        for derivative in ("forward-mode", "central", "one-sided")
    }
    recomputed = [*EXACT, *ways, "runtime.activation_checkpointing=true"]
    plan["recomputed"] = (transformer(), recomputed)
    plan["compiled"] = (transformer(), [*recomputed, *COMPILED, "runtime.compile_backend=aot_eager", *SCORED])
    plan["split"] = (base("freeflow", "central"), [*ODD, *ways, f"training.accumulation={4 // number}"])
    launch(plan, number, tmp_path)
    for name, (start, settings) in plan.items():
        assert_equal(alone(start, settings, tmp_path / f"{name}-alone"), tmp_path / name)
