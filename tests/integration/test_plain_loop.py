"""The engine's FreeFlow step against a second derivation of it: the plain loop of the benchmarks, on the same draws."""

import copy
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from freeflow_transformers.architecture import TransformerConfig
from freeflow_transformers.network import DiffusionTransformer
from freeflow_transformers.weights import transformer_state

from freeflow_core.engine.build import Builder, build_components
from freeflow_core.engine.process import start_accelerator
from freeflow_core.engine.state import build_state
from freeflow_core.engine.trainer import Trainer
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.network_file import save_network

BATCH, STEPS = 16, 3
TRANSFORMER = {"name": "transformer", "width": 32, "depth": 1, "num_heads": 2, "patch_size": 2}
MIXTURE = {"name": "gaussian-mixture", "sample_shape": [1, 4, 4], "num_classes": 3, "std": 0.3}
TRAINING = {
    "images": 96,
    "batch_size": BATCH,
    "optimizer": {"learning_rate": 1e-2, "warmup_images": 20, "schedule": "linear", "weight_decay": 0.1},
    "ema": {"halflife_images": 40, "rampup_ratio": 0.5},
}
"""The second step is the first past the warm-up; the average's half-life is capped from the third."""


@pytest.fixture(scope="module")
def plain_loop():
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "plain_loop.py"
    spec = importlib.util.spec_from_file_location("plain_loop", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["plain_loop"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["plain_loop"]


@pytest.fixture
def sit_checkpoint(tmp_path):
    """A transformer teacher of random weights, the output layer and every gate included."""
    config = TransformerConfig(sample_shape=(1, 4, 4), patch_size=2, width=32, depth=1, num_heads=2, num_classes=3)
    network = shake(DiffusionTransformer(config))
    path = tmp_path / "teacher.safetensors"
    save_network(path, transformer_state(network), {})
    return path


def shake(network, scale=0.1):
    """Add noise to every weight, so that no zero layer hides a term."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in network.parameters():
            p += scale * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
    return network


def train_both(registry, config, plain_loop):
    """Three steps of each from the same weights: (engine's role states, the plain loop, starting student)."""
    accelerator = start_accelerator(config.runtime)
    components = build_components(Builder(registry, accelerator.device, config.seed), config)
    shake(components.student)
    start = copy.deepcopy(components.student)
    state = build_state(config, components, accelerator)
    loop = plain_loop.PlainLoop(config, copy.deepcopy(start), copy.deepcopy(start), components.teacher)
    trainer = Trainer(config, components, state, accelerator)
    for step in range(STEPS):
        trainer.step()
        loop.step(same_draws(plain_loop, config, components.teacher, step))
    return state.roles, loop, start


def same_draws(plain_loop, config, teacher, step):
    """The engine's draws of one step, by stream; every fourth row does correction."""
    o = config.objective.options
    dtype = torch.float64 if config.runtime.precision == "float64" else torch.float32
    index = torch.arange(BATCH) + step * BATCH
    correcting = torch.arange(BATCH) % 4 == 3
    order = torch.cat([(~correcting).nonzero().flatten(), correcting.nonzero().flatten()])
    draws = PhiloxDraws(config.seed, index, dtype=dtype)
    d = 1 - draws.uniform("duration")
    d[correcting] = 1.0
    labels = teacher.sample_condition(draws)
    return plain_loop.StepDraws(
        z=draws.noise("prior", teacher.sample_shape)[order],
        labels=None if labels is None else labels[order],
        d=d[order],
        guidance=(o.guidance_max - (o.guidance_max - o.guidance_min) * draws.uniform("guidance"))[order],
        r=torch.sigmoid(o.r_location + o.r_scale * torch.special.ndtri(draws.uniform("noise-level")[correcting])),
        n=draws.noise("correction-noise", teacher.sample_shape)[correcting],
    )


def distance(network, other):
    return max(
        float((a - b).detach().abs().max()) for a, b in zip(network.parameters(), other.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    "objective",
    [
        {"derivative": "one-sided", "weight_power": 0.5, "balance": "weighted"},
        {"derivative": "central", "weight_power": 1.0, "balance": "raw", "balance_strength": 0.5},
        {"derivative": "one-sided", "balance": "signal", "signal_halflife_images": 20.0},
        {"derivative": "central", "derivative_step": 0.1},  # wide enough that rows near both ends lean inwards
        {"derivative": "one-sided", "derivative_step": 0.1, "correction_weight_power": 0.5, "balance": "weighted"},
    ],
)
def test_the_engine_and_the_plain_loop_train_alike(tiny, registry, plain_loop, objective):
    config = tiny(
        teacher=MIXTURE, student=TRANSFORMER, objective={"name": "freeflow", **objective}, training=TRAINING,
        runtime={"device": "cpu", "threads": 1, "precision": "float64"},
    )  # fmt: skip
    roles, loop, start = train_both(registry, config, plain_loop)
    assert distance(start, loop.student) > 1e-3
    assert distance(roles["student"].network, loop.student) < 1e-9
    assert distance(roles["fake_velocity"].network, loop.fake_velocity) < 1e-9
    assert distance(roles["student"].ema, loop.ema) < 1e-9
    assert distance(loop.ema, loop.student) > 1e-4


def test_alike_with_a_guided_transformer_teacher(tiny, registry, plain_loop, sit_checkpoint):
    config = tiny(
        teacher={"name": "sit", "checkpoint": str(sit_checkpoint)},
        student={"name": "transformer"},
        objective={
            "name": "freeflow", "guidance_min": 1.0, "guidance_max": 4.0, "guidance_interval": [0.2, 0.9],
            "correction_guidance_scale": 0.5, "correction_guidance_interval": [0.6, 1.0],
        },
        training=TRAINING,
        runtime={"device": "cpu", "threads": 1, "precision": "float64"},
    )  # fmt: skip
    roles, loop, _ = train_both(registry, config, plain_loop)
    assert distance(roles["student"].network, loop.student) < 1e-9
    assert distance(roles["fake_velocity"].network, loop.fake_velocity) < 1e-9


def test_alike_in_float32_and_without_classes(tiny, registry, plain_loop):
    # Adam divides by sqrt(v) + epsilon: a larger epsilon keeps it from turning the rounding of gradients that
    # should be zero into steps.
    training = {**TRAINING, "optimizer": {**TRAINING["optimizer"], "learning_rate": 1e-3, "epsilon": 1e-3}}
    config = tiny(training=training)
    roles, loop, start = train_both(registry, config, plain_loop)
    assert distance(start, loop.student) > 1e-4
    assert distance(roles["student"].network, loop.student) < 1e-6
    assert distance(roles["student"].ema, loop.ema) < 1e-6


def test_the_plain_loop_draws_what_its_step_takes(tiny, registry, plain_loop):
    config = tiny(teacher=MIXTURE, student=TRANSFORMER, training=TRAINING)
    components = build_components(Builder(registry, torch.device("cpu"), 0), config)
    networks = [copy.deepcopy(components.student) for _ in range(2)]
    loop = plain_loop.PlainLoop(config, *networks, components.teacher)
    draws = loop.draw()
    assert draws.z.shape == (16, 1, 4, 4)
    assert draws.n.shape == (4, 1, 4, 4)
    assert bool((draws.d[12:] == 1).all())
    assert bool(((draws.d > 0) & (draws.d <= 1)).all())
    loop.step(draws)
    assert loop.images == 16
    assert distance(networks[0], components.student) > 0
