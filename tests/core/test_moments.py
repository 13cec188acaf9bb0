"""Adam's moments in fewer bytes and elsewhere: the same training, or nearly, from any state that was kept."""

import builtins
import copy

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from freeflow_core.config import OptimizerConfig, RuntimeConfig
from freeflow_core.engine.moments import Packing, packing_for
from freeflow_core.engine.optimizer import Copies, RoleOptimizer
from freeflow_core.engine.process import planned_device_type
from freeflow_core.errors import ConfigError
from freeflow_core.tools.cost.step import MemoryTracker

MOST = {"bf16": 4.1, "8bit": 2.1}
"""Bytes that two moments of a weight take at most, padding included."""
WAYS = [("full", True), ("bf16", False), ("8bit", False), ("8bit", True)]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr("freeflow_core.engine.optimizer._PIECE", 12_000)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(67, 131), nn.Tanh(), nn.Linear(131, 150), nn.Tanh(), nn.Linear(150, 40))


def optimizer(trained, precision="full", on_host=False, **options):
    config = OptimizerConfig(clip_norm=0.5, moments=precision, **options)
    return RoleOptimizer(trained, config, packing=packing_for(config, on_host=on_host))


def train(trained, optimizer, steps, first=0):
    losses = []
    for step in range(first, first + steps):
        x = torch.randn(64, 67, generator=torch.Generator().manual_seed(step))
        loss = (trained(x) - x[:, :40].sin()).square().mean()
        loss.backward()
        optimizer.step(1e-2, optimizer.gradient_norm(), torch.zeros(()))
        losses.append(loss.item())
    return sum(losses[-5:]) / 5


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_moments_on_the_host_train_the_same_weights_to_the_bit():
    here, there = network(), network()
    train(here, optimizer(here), 6)
    away = optimizer(there, on_host=True)
    train(there, away, 6)
    assert same(here.parameters(), there.parameters())
    held, on_host = away.kept()
    number = sum(p.numel() for p in there.parameters())
    assert sum(tensor.numel() for tensor in held) < 1.2 * number  # room for one piece
    assert sum(tensor.numel() for tensor in on_host) >= 2 * number


@pytest.mark.parametrize("precision", ["bf16", "8bit"])
def test_fewer_bits_take_their_bytes_and_train_nearly_as_well(precision):
    full, packed = network(), network()
    expected = train(full, optimizer(full), 60)
    chosen = optimizer(packed, precision)
    assert train(packed, chosen, 60) == pytest.approx(expected, rel=0.05)
    assert expected < 0.2
    assert not same(full.parameters(), packed.parameters())
    large = [p for p in packed.parameters() if p.numel() >= 4096]
    pieces = Packing(precision, on_host=False).pieces(large)
    assert len(pieces) > 1
    taken = sum(t.numel() * t.element_size() for piece in pieces for t in piece.kept if t.numel() != 256)
    assert taken <= MOST[precision] * sum(p.numel() for p in large)


@pytest.mark.parametrize(("precision", "on_host"), WAYS)
def test_a_restart_changes_nothing(precision, on_host):
    through, stopped = network(), network()
    whole = optimizer(through, precision, on_host)
    train(through, whole, 12)
    first = optimizer(stopped, precision, on_host)
    train(stopped, first, 6)
    kept = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    assert kept.keys() == first.layout().keys()
    resumed = copy.deepcopy(stopped)
    second = optimizer(resumed, precision, on_host)
    second.load_state_dict(kept)
    train(resumed, second, 6, first=6)
    assert same(through.parameters(), resumed.parameters())
    assert same(whole.state_dict().values(), second.state_dict().values())


@pytest.mark.parametrize(("precision", "on_host"), WAYS)
def test_the_kernels_own_skip_leaves_packed_moments_alone(precision, on_host):
    trained = network()
    chosen = optimizer(trained, precision, on_host)
    train(trained, chosen, 3)
    before = {name: tensor.clone() for name, tensor in chosen.state_dict().items()}
    weights = [p.detach().clone() for p in trained.parameters()]
    for p in trained.parameters():
        p.grad = torch.full_like(p, torch.nan)
    chosen._update(1e-2, torch.tensor(torch.nan), torch.ones(()))  # as on a device, where the flag is not read
    assert same(weights, trained.parameters())
    assert same(before.values(), chosen.state_dict().values())


def test_weights_that_a_loss_does_not_reach_keep_packed_moments():
    trained = network()
    chosen = optimizer(trained, "8bit")
    train(trained, chosen, 2)
    before = {name: tensor.clone() for name, tensor in chosen.state_dict().items()}
    trained[0](torch.ones(1, 67)).sum().backward()
    chosen.step(1e-2, chosen.gradient_norm(), torch.zeros(()))
    changed = {name for name, tensor in chosen.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"updates", *(f"{m}/0.{p}" for m in ("exp_avg", "exp_avg_sq") for p in ("weight", "bias"))}


def test_eight_bits_keep_every_block_within_a_hundredth_of_its_largest():
    weight = torch.zeros(64, 256)
    (piece,) = Packing("8bit", on_host=False).pieces([weight])
    values = (
        torch.randn(64, 256, generator=torch.Generator().manual_seed(1)) * 10.0 ** (torch.arange(64) / 2 - 16)[:, None]
    )
    first, second = piece.open()
    first[0].copy_(values)
    second[0].copy_(values.square())
    piece.close()
    first, second = (tensors[0].clone() for tensors in piece.open())
    for found, given in ((first, values), (second, values.square())):
        large = given.abs().amax(1) > 1e-10
        error = (found - given).abs().amax(1) / given.abs().amax(1).clamp(min=1e-12)
        assert bool((error[large] < 0.01).all())
        assert bool((found[~large].abs() <= 1e-10).all())


def test_what_cannot_be_is_refused_with_a_remedy(monkeypatch):
    with pytest.raises(ValidationError, match=r"beta2 <= 0\.99"):
        OptimizerConfig(moments="bf16", beta2=0.999)
    with pytest.raises(ConfigError, match=r"offload_optimizer.*moments=8bit"):
        planned_device_type(RuntimeConfig(device="cpu", offload_optimizer=True))
    assert planned_device_type(RuntimeConfig(device="cuda", offload_optimizer=True)) == "cuda"
    real = builtins.__import__

    def without_torchao(name, *arguments):
        if name.startswith("torchao"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_torchao)
    with pytest.raises(ConfigError, match=r"pip install 'freeflow-distill\[low-bit\]'"):
        optimizer(network(), "8bit")


def test_an_average_makes_no_copy_of_the_network():
    """On a device, here the one without memory, where the step is not read."""
    with torch.device("meta"):
        average, weights = network(), network()
        step = torch.zeros(())
    pairs = Copies.of(average, weights)
    assert [p for own, _ in pairs.weights for p in own] == list(average.parameters())
    with MemoryTracker() as memory:
        pairs.follow(step)
    sizes = [4 * p.numel() for p in weights.parameters()]
    assert 0 < memory.peak <= max(sizes) < 0.6 * sum(sizes)


@pytest.mark.parametrize(("precision", "on_host"), WAYS)
def test_what_is_copied_for_a_checkpoint_is_copied_once_and_piece_by_piece(precision, on_host):
    """Packed moments are gone from where they are unpacked as soon as the next piece is: each is copied at once."""
    trained = network()
    chosen = optimizer(trained, precision, on_host)
    train(trained, chosen, 2)
    made = []

    def copied(tensor):
        made.append(tensor.clone())
        return made[-1]

    expected = {name: tensor.clone() for name, tensor in chosen.state_dict().items()}
    given = chosen.state_dict(copied)
    assert sorted(map(id, given.values())) == sorted(map(id, made))
    assert given.keys() == expected.keys()
    assert same(given.values(), expected.values())
    train(trained, chosen, 1, first=2)
    assert same(given.values(), expected.values())
