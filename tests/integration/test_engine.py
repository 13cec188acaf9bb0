"""The step: what is counted, skipped, refused, and never touched."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from freeflow_core import api
from freeflow_core.config import OptimizerConfig
from freeflow_core.engine.optimizer import RoleOptimizer, learning_rate
from freeflow_core.engine.run import Run
from freeflow_core.engine.state import RoleState
from freeflow_core.engine.trainer import Trainer
from freeflow_core.errors import CheckpointError, ConfigError, NonFiniteError, PluginError
from freeflow_core.evaluation.scoring import Scoring
from freeflow_core.interfaces import Role
from freeflow_core.math import derivative
from freeflow_core.types import Loss, Progress


def make_run(config, output, manager):
    return Run(config, "distill", manager, output=output, resume=False, scorer=Scoring)


@pytest.mark.parametrize("role", ["student", "fake_velocity"])
def test_a_non_finite_step_reaches_no_weights_and_is_raised_at_the_next_reading(tiny, output, manager, role):
    run = make_run(tiny(), output, manager)
    run.trainer.step()
    objective = run.components.objective
    healthy = objective.losses

    def poisoned(*arguments):
        losses = healthy(*arguments)
        bad = losses[role]
        losses[role] = Loss(bad.per_sample * float("nan"), bad.terms)
        return losses

    before = {name: {k: v.clone() for k, v in files.items()} for name, files in run.state.tensors().items()}
    objective.losses = poisoned
    run.trainer.step()
    objective.losses = healthy
    after = run.state.tensors()
    for name, files in before.items():
        if name == "objective":  # averages of what it measured, not weights
            continue
        for key, value in files.items():
            assert torch.equal(value, after[name][key]), f"{name} {key} was touched"
    with pytest.raises(NonFiniteError, match=f"{role}/loss"):
        run.trainer.read_metrics()


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ("teacher", "the teacher"),
        ("derivative", "the derivative"),
        ("loss", "the loss of student"),
        ("gradient", "grad"),
    ],
)
def test_what_was_not_finite_first_is_named_and_nothing_follows(tiny, output, manager, monkeypatch, where, named):
    run = make_run(tiny(), output, manager)
    objective, teacher = run.components.objective, run.components.teacher
    healthy, velocity, central = objective.losses, teacher.velocity, derivative._central

    def poisoned(*arguments):
        losses = healthy(*arguments)
        bad = losses["student"].per_sample
        if where == "gradient":  # of a square root at 0, whose value is finite
            bad = bad + ((bad - bad.detach()) ** 2).sqrt()
        return losses | {"student": Loss(bad * float("nan") if where == "loss" else bad)}

    run.trainer.step()
    weights = {key: value.clone() for key, value in run.state.tensors()["student"].items()}
    if where == "teacher":
        monkeypatch.setattr(type(teacher), "velocity", lambda self, *given: velocity(*given) / 0)
    elif where == "derivative":
        monkeypatch.setattr(derivative, "_central", lambda *given: central(*given) * float("inf"))
    else:
        objective.losses = poisoned
    run.trainer.step()
    monkeypatch.undo()
    if where in ("loss", "gradient"):
        objective.losses = healthy
    run.trainer.step()
    assert all(torch.equal(value, weights[key]) for key, value in run.state.tensors()["student"].items())
    objective.losses = poisoned if where in ("loss", "gradient") else healthy
    if where == "teacher":
        monkeypatch.setattr(type(teacher), "velocity", lambda self, *given: velocity(*given) / 0)
    elif where == "derivative":
        monkeypatch.setattr(derivative, "_central", lambda *given: central(*given) * float("inf"))
    with pytest.raises(NonFiniteError, match=rf"image 16 .*{named}"):
        run.trainer.read_metrics()


def test_a_passing_fault_is_told_from_one_that_stays(tiny, output, manager):
    run = make_run(tiny(), output, manager)
    healthy = run.components.objective.losses
    run.components.objective.losses = lambda *arguments: {
        name: Loss(loss.per_sample * float("nan")) for name, loss in healthy(*arguments).items()
    }
    run.trainer.step()
    run.components.objective.losses = healthy
    with pytest.raises(NonFiniteError, match="passing fault, of the machine"):
        run.trainer.read_metrics()


def test_no_checkpoint_follows_a_non_finite_step(tiny, output, manager):
    run = make_run(tiny("checkpointing.every_images=16", "logging.every_images=1000"), output, manager)
    objective = run.components.objective
    healthy = objective.losses

    def poisoned(models, batch, draws, progress, context):
        losses = healthy(models, batch, draws, progress, context)
        if progress.images >= 64:
            losses["student"] = Loss(losses["student"].per_sample * float("inf"), {})
        return losses

    objective.losses = poisoned
    with pytest.raises(NonFiniteError, match="last checkpoint"):
        run.execute()
    names = sorted(p.name for p in (output / "checkpoints").iterdir())
    assert names[-1] == "images-000000000064"
    assert json.loads((output / "run.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (("source=digits",), "data-free"),
        (("objective=flow-matching",), "trains on data"),
        (
            ("objective=pi-flow", "source=gaussian-mixture", "codec=states"),
            "trains a PolicyStudent, but the student 'mlp'",
        ),
        (("student=velocity-transformer",), "sample_shape|images|shape"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tiny, output, manager, assignments, message):
    with pytest.raises(ConfigError, match=message):
        make_run(tiny(*assignments), output, manager)
    assert not output.exists()


def test_a_source_of_another_shape_is_refused(tiny, output, manager):
    config = tiny(
        "student.sample_shape=[1, 16, 16]",
        teacher=None,
        source="digits",
        objective={"name": "flow-matching"},
        student={"name": "velocity-transformer", "width": 16, "depth": 1, "num_heads": 2, "patch_size": 4},
    )
    with pytest.raises(ConfigError, match=r"yields states of shape \(1, 8, 8\).*\(1, 16, 16\)"):
        api.pretrain(config, output=output, manager=manager)


@pytest.mark.parametrize(("dtype", "clip"), [(torch.float32, None), (torch.float64, None), (torch.float32, 0.01)])
def test_updates_are_those_of_torchs_fused_adamw_bit_for_bit_or_after_clip_grad_norm(dtype, clip):
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)
    theirs = copy.deepcopy(ours)
    options = {"weight_decay": 0.01} | ({"epsilon": 0.1, "clip_norm": clip} if clip else {})
    optimizer = RoleOptimizer(ours, OptimizerConfig(learning_rate=0.1, **options))
    epsilon = 0.1 if clip else 1e-8
    reference = torch.optim.AdamW(
        theirs.parameters(), lr=0.1, betas=(0.9, 0.95), eps=epsilon, weight_decay=0.01, fused=True
    )
    for _ in range(5):
        x = torch.randn(5, 7, dtype=dtype)
        for network in (ours, theirs):
            network(x).square().sum().backward()
        optimizer.step(0.1, optimizer.gradient_norm(), torch.zeros(()))
        if clip:
            nn.utils.clip_grad_norm_(theirs.parameters(), clip)
        reference.step()
        reference.zero_grad()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6) if clip else torch.equal(a, b)
        assert a.grad is None


def test_weights_without_a_gradient_stay_and_the_kernels_own_skip_touches_nothing():
    network = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    optimizer = RoleOptimizer(network, OptimizerConfig(learning_rate=0.1))
    start = copy.deepcopy(network)
    network[0](torch.ones(1, 2)).sum().backward()
    optimizer.step(0.1, optimizer.gradient_norm(), torch.zeros(()))
    assert not torch.equal(network[0].weight, start[0].weight)
    assert torch.equal(network[1].weight, start[1].weight)
    moved, state = copy.deepcopy(network), {k: v.clone() for k, v in optimizer.state_dict().items()}
    network[0](torch.ones(1, 2)).sum().backward()
    with torch.no_grad():
        optimizer._update(0.1, optimizer.gradient_norm(), torch.ones(()))  # the path of a device that must not sync
    assert torch.equal(network[0].weight, moved[0].weight)
    assert all(torch.equal(v, state[k]) for k, v in optimizer.state_dict().items())


def test_optimizer_state_of_other_weights_is_refused():
    network = nn.Linear(2, 2)
    optimizer = RoleOptimizer(network, OptimizerConfig())
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step(0.1, optimizer.gradient_norm(), torch.zeros(()))
    state = optimizer.state_dict()
    with pytest.raises(CheckpointError, match=r"other weights.*exp_avg/bias"):
        RoleOptimizer(network, OptimizerConfig()).load_state_dict(
            {k: v for k, v in state.items() if k != "exp_avg/bias"}
        )
    with pytest.raises(CheckpointError, match="another shape"):
        RoleOptimizer(network, OptimizerConfig()).load_state_dict(state | {"exp_avg/bias": torch.zeros(5)})


@pytest.mark.parametrize("halflife", [None, 64.0])
def test_a_role_that_follows_the_student_trails_it_and_skips_what_it_skips(tiny, output, manager, halflife):
    run = make_run(tiny(), output, manager)
    student = run.state.roles["student"]
    target = copy.deepcopy(student.network)
    run.state.roles["target"] = RoleState(target, target, None, None, "student", halflife)
    run.trainer = Trainer(run.config, run.components, run.state, run.accelerator)
    start = [p.detach().clone() for p in student.network.parameters()]
    run.trainer.step()
    decay = 0.0 if halflife is None else 0.5 ** (run.config.training.batch_size / halflife)
    for before, now, trailing in zip(start, student.network.parameters(), target.parameters(), strict=True):
        torch.testing.assert_close(trailing, decay * before + (1 - decay) * now)
    held = [p.detach().clone() for p in target.parameters()]
    objective = run.components.objective
    healthy = objective.losses
    objective.losses = lambda *arguments: {
        name: Loss(loss.per_sample * float("nan")) for name, loss in healthy(*arguments).items()
    }
    run.trainer.step()
    assert all(torch.equal(a, b) for a, b in zip(held, target.parameters(), strict=True))


def test_a_trainable_role_or_an_unknown_one_cannot_be_followed(tiny, output, manager, monkeypatch):
    from freeflow_predictor_corrector.freeflow import FreeFlow

    for role in (Role(nn.Linear(1, 1), follows="student"), Role(nn.Linear(1, 1), trainable=False, follows="teacher")):
        monkeypatch.setattr(FreeFlow, "roles", lambda self, student, teacher, role=role: {"target": role})
        with pytest.raises(PluginError, match=r"role 'target'.*expected a frozen role"):
            make_run(tiny(), output, manager)


def test_learning_rate_schedules():
    config = OptimizerConfig(learning_rate=1.0, warmup_images=100, schedule="cosine", final_fraction=0.1)
    assert learning_rate(config, 0, 1000) == pytest.approx(1 / 101)
    assert learning_rate(config, 100, 1000) == pytest.approx(1.0)
    assert learning_rate(config, 550, 1000) == pytest.approx(0.55)
    assert learning_rate(config, 1000, 1000) == pytest.approx(0.1)
    linear = OptimizerConfig(learning_rate=1.0, schedule="linear")
    assert learning_rate(linear, 250, 1000) == pytest.approx(0.75)
    root = OptimizerConfig(learning_rate=1.0, schedule="inverse-sqrt", decay_images=100)
    assert [learning_rate(root, i, 1000) for i in (50, 400)] == pytest.approx([1.0, 0.5])


def test_the_schedule_of_an_objective_with_rounds_runs_over_each_round(tiny, output, manager):
    run = make_run(tiny(), output, manager)
    config = OptimizerConfig(learning_rate=1.0, warmup_images=0, schedule="linear", final_fraction=0.0)
    spans = lambda progress: (100, 300) if progress.images >= 100 else (0, 100)  # noqa: E731
    run.trainer._rounds = SimpleNamespace(schedule_span=spans)
    rates = [learning_rate(config, *run.trainer._schedule(Progress(i, 0, 300))) for i in (0, 50, 100, 200)]
    assert rates == pytest.approx([1.0, 0.5, 1.0, 0.5])


def test_bf16_refuses_one_sided_differences_before_anything_is_written(tiny, output, manager):
    with pytest.raises(ConfigError, match="one-sided"):
        make_run(tiny("objective.derivative=one-sided", "runtime.precision=bf16"), output, manager)
    assert not output.exists()
